"""Every error flask-litestack raises.

LitestackError
 +-- ConfigError                  a setting, or the order of init_app, is wrong
 |    +-- DataPathError           LITESTACK_DATA_PATH cannot hold our files
 +-- MachineError                 another machine serves the app from a volume of its own
 +-- StoreError                   one of our files cannot be used
 |    +-- DiskFullError           there is no room for what was to be written
 |    +-- NewerStoreError         written by a newer, incompatible release
 |    +-- LiveFileError           a live database file was opened behind SQLite's back
 |    +-- BackupError             a backup cannot be made, is damaged, or cannot be restored
 +-- TransactionError             a transaction was used in a way that would lose data
 |    +-- ReadOnlyError           a write inside db.read()
 +-- CableError                   the cable could not do what was asked
 |    +-- ChannelError            no declared channel has this name
 |    +-- Rejected                raise it in a channel function to refuse with a reason
 +-- JobError                     a task or a job was used wrongly, or a job went wrong
 |    +-- ArgumentsError          its arguments cannot be stored, or read again
 |    +-- UnknownTaskError        no module this process has imported declares the task
 |    +-- JobTimeout              it ran for longer than its timeout
 |    +-- JobCancelled            somebody cancelled it while it ran
 |    +-- WorkerKilledError       it was running whenever its worker process died
 |    +-- JobStateError           it is not in a state that allows what was asked
 +-- LockError                    the write lock could not be had
      +-- LockTimeout             ... within LITESTACK_BUSY_TIMEOUT
      +-- SelfDeadlock            ... because this thread already holds it
      +-- StaleSnapshotError      ... because the transaction had already read an older state

The errors that can come out of a statement (TransactionError, LockError, DiskFullError) are also
SQLAlchemy's and the driver's ``OperationalError``. SQLAlchemy raises them as they are, not wrapped
into another.
"""

from __future__ import annotations

from sqlalchemy import exc

from .sqlite import driver


class LitestackError(Exception):
    """The base of every error of this package."""


class _OperationalError(exc.DontWrapMixin, exc.OperationalError, driver.OperationalError):
    """What can come out of a statement: one ``except`` finds it at whatever level it is raised."""

    def __init__(self, message: str) -> None:
        exc.OperationalError.__init__(self, None, None, self)
        self.args = (message,)

    def __str__(self) -> str:
        return str(self.args[0])

    def __reduce__(self) -> tuple[type[_OperationalError], tuple[str]]:
        return type(self), (str(self),)


class ConfigError(LitestackError):
    """Raised for an unknown or ill-typed setting, or a forgotten or repeated init_app."""


class DataPathError(ConfigError):
    """Raised when the data folder, or run/ beside a database, cannot be made, written or locked."""


class MachineError(LitestackError):
    """Raised at the start of the server if another machine serves the app, and answers."""


class StoreError(LitestackError):
    """Raised when one of the files in the data folder cannot be used."""


class DiskFullError(StoreError, _OperationalError):
    """Raised when the disk, or the file's quota, has no room for what was to be written."""

    #: SQLite's own number for it, by which others tell it.
    sqlite_errorcode = 13


class NewerStoreError(StoreError):
    """Raised when a file was written by a release this one cannot follow."""


class LiveFileError(StoreError):
    """Raised when a database file that this process has open is opened by other means."""


class CableError(LitestackError):
    """Raised when a message cannot be sent, or a client cannot be served, as asked."""


class ChannelError(CableError):
    """Raised for the name of a channel that is not declared."""


class Rejected(CableError):
    """Raise it in a channel function: the client is refused, and told this reason."""

    def __init__(self, reason: str = "forbidden") -> None:
        super().__init__(reason)
        self.reason = reason


class BackupError(StoreError):
    """Raised when a backup cannot be made, is damaged, or cannot be put back."""


class TransactionError(LitestackError, _OperationalError):
    """Raised when going on would lose or overwrite someone's changes."""


class ReadOnlyError(TransactionError):
    """Raised by a statement that writes inside ``db.read()``."""


class JobError(LitestackError):
    """The base of the errors of tasks and jobs."""


class ArgumentsError(JobError, TypeError):
    """Raised when the arguments of a job are not JSON, or do not fit the task."""


class UnknownTaskError(JobError):
    """The error of a job whose task this release of the app does not declare."""


class JobTimeout(JobError):
    """Raised inside a task that runs for longer than its timeout."""


class JobCancelled(JobError):
    """Raised by ``current_job().check()`` in a task once its job has been cancelled."""


class WorkerKilledError(JobError):
    """The error of a job that was running each time its worker process was killed."""


class JobStateError(JobError):
    """Raised when a job cannot be retried, cancelled or deleted in the state it is in."""


class LockError(LitestackError, _OperationalError):
    """Raised when the write lock of a database cannot be taken."""


class LockTimeout(LockError):
    """Raised when the write lock was not free within ``LITESTACK_BUSY_TIMEOUT``."""


class SelfDeadlock(LockError):
    """Raised when a thread would wait for a write lock that it holds on another connection."""


class StaleSnapshotError(LockError):
    """Raised when a transaction that began by reading can no longer begin to write."""

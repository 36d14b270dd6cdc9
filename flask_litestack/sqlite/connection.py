"""A SQLite connection on which transactions cannot go wrong by accident.

* Reads run outside a transaction: each sees the latest commit, and none blocks anybody.
* The first write is preceded by BEGIN IMMEDIATE, in the file's write queue: from there to COMMIT
  the connection is alone, so "database is locked" cannot come in the middle.
* Results are fetched whole. A half-read one would pin an old snapshot: a later write fails at
  once, a later read is stale. Streaming is for the snapshot of :meth:`Connection.begin_read`.
* Work to be done after the commit is dropped with its savepoint or its transaction.

It sits below SQLAlchemy, as the DB-API connection, so that the ORM, text statements and raw
cursors are all treated alike.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal
from weakref import WeakSet

from ..errors import (
    LockError,
    ReadOnlyError,
    StaleSnapshotError,
    StoreError,
    TransactionError,
)
from . import driver, filesystem, fork, guard
from .file import File, file_at
from .pragmas import file_of, set_common, set_log
from .results import BufferedCursor
from .statements import Kind, Statement, classify
from .trouble import is_busy, is_damaged, is_stale, refuse_full
from .turn import Turn
from .work import Work, WorkList

_execute = driver.Cursor.execute
_executemany = driver.Cursor.executemany
_fetchall = driver.Cursor.fetchall


def connect(
    path: str | os.PathLike[str],
    *,
    busy_timeout: float = 5.0,
    synchronous: Literal["OFF", "NORMAL", "FULL"] = "NORMAL",
    guard: bool = True,
    describe: Callable[[], str] | None = None,
    uri: bool = False,
) -> Connection:
    """Open a database file, in WAL mode, with foreign keys on.

    :param busy_timeout: seconds to wait for a lock that another connection has.
    :param synchronous: FULL syncs each commit to disk, NORMAL within a second, OFF never.
    :param guard: refuse other ways to open the file in this process.
    :param describe: says what the calling thread does, for messages about the write lock.
    :raises DiskFullError: if there is no room for the files beside it.
    :raises StoreError: if the file is not a SQLite database, or is damaged.
    """
    connection = driver.module.connect(
        os.fspath(path),
        timeout=0,  # waiting is done here, see turn.py
        isolation_level=None,
        check_same_thread=False,
        cached_statements=256,
        factory=Connection,
        uri=uri,
    )
    connection.tune(
        busy_timeout=busy_timeout, synchronous=synchronous, watch=guard, describe=describe
    )
    return connection


class Cursor(BufferedCursor):
    """A cursor that asks its connection before it writes."""

    connection: Connection

    def execute(self, sql: str, parameters: Any = (), /) -> Cursor:
        self._rows = None
        statement = classify(sql)
        connection = self.connection
        try:
            if statement.kind is Kind.READ:
                connection._inside = True
                try:
                    if fork.pending:
                        connection._wait_for_fork()
                    connection._run(_execute, self, sql, parameters)
                    if statement.name:
                        connection._note_setting()
                    if self.description is not None and connection._snapshot is None:
                        self._rows = iter(_fetchall(self))
                finally:
                    connection._inside = False
            else:
                connection._change(statement, _execute_whole, self, sql, parameters)
        except driver.OperationalError as error:
            refuse_full(error, connection._name)
            raise
        return self

    def executemany(self, sql: str, parameters: Iterable[Any], /) -> Cursor:
        self._rows = None
        try:
            # A try again must find the same parameters.
            self.connection._change(classify(sql), _executemany, self, sql, list(parameters))
        except driver.OperationalError as error:
            refuse_full(error, self.connection._name)
            raise
        return self

    def executescript(self, script: str, /) -> Cursor:
        self._rows = None
        try:
            self.connection._script(self, script)
        except driver.OperationalError as error:
            refuse_full(error, self.connection._name)
            raise
        return self


def _execute_whole(cursor: Cursor, sql: str, parameters: Any) -> None:
    """Run a statement that writes to its end: before that, what returns rows does not commit."""
    _execute(cursor, sql, parameters)
    if cursor.description is not None and cursor.connection._snapshot is None:
        cursor._rows = iter(_fetchall(cursor))


class Connection(driver.Connection):
    """See the module's docstring. Made by :func:`connect`."""

    def __init__(self, database: Any, *args: Any, **options: Any) -> None:
        self._name = os.fsdecode(database)
        self._snapshot: object | None = None
        self._inside = True  # inside SQLite, whichever thread asks; see the module fork
        fork.track(self)
        try:
            super().__init__(database, *args, **options)
        except driver.OperationalError as error:
            refuse_full(error, self._name)
            raise
        finally:
            self._inside = False
        self._file: File | None = None
        self._timeout = 5.0
        self._synchronous = "NORMAL"
        self._writing = False
        self._autocommit = False
        self._is_lent: Callable[[], bool] | None = None
        self._altered = False
        self._cursors: WeakSet[Cursor] = WeakSet()
        self._inherited = False
        self._aborted = ""
        self._closed = False
        self._after = WorkList()
        self._turn = Turn(None)

    # -- what a caller uses beyond the DB-API ------------------------------------------------

    def begin_immediate(self) -> None:
        """Take the write lock now: whatever is read from here on stays true until the commit.

        Does nothing if this connection has the lock already.

        :raises LockTimeout: if it was not free within the busy timeout.
        :raises SelfDeadlock: if this thread holds it on another connection.
        :raises TransactionError: inside a snapshot, or after a failure that rolled back.
        :raises DiskFullError: if there is no room to begin.
        """
        self._check_usable()
        if self._writing:
            return
        if self.in_transaction and self._snapshot is None:
            raise TransactionError(
                "a transaction that began without the write lock cannot take it afterwards; "
                "end it first."
            )
        try:
            self._begin()
        except driver.OperationalError as error:
            refuse_full(error, self._name)
            raise

    def begin_read(self) -> object:
        """Begin one consistent snapshot, in which results are streamed.

        Returns what stands for it; end it with :meth:`end_read`.
        """
        self._check_usable()
        if self.in_transaction:
            raise TransactionError("a snapshot must begin outside a transaction.")
        self._run(_execute, driver.Connection.cursor(self), "BEGIN", ())
        # BEGIN alone pins nothing: the snapshot is that of the first read.
        self._run(_execute, driver.Connection.cursor(self), "SELECT 1 FROM sqlite_schema", ())
        self._snapshot = object()
        return self._snapshot

    def end_read(self, snapshot: object) -> None:
        """End the snapshot; results not read to their end are closed.

        Does nothing if it has ended already: the connection may serve another one by now.
        """
        if snapshot is self._snapshot:
            self.rollback()

    @property
    def name(self) -> str:
        """The name of the file, as it was given."""
        return self._name

    @property
    def inside(self) -> bool:
        """Whether a call into SQLite is going on, on whichever thread."""
        return self._inside or self._snapshot is not None

    def inherit(self) -> None:
        """Become useless: this is a forked child, and the connection its parent's."""
        self._inherited = True

    @property
    def snapshot(self) -> object | None:
        """What begin_read() has returned, while it is in effect."""
        return self._snapshot

    @property
    def writing(self) -> bool:
        """Whether this connection has the write lock."""
        return self._writing

    @property
    def altered(self) -> bool:
        """Whether a pragma, or an ATTACH, has changed it for whoever has it next."""
        return self._altered

    @property
    def awaits_commit(self) -> bool:
        """Whether something is to be done after the commit."""
        return bool(self._after.works)

    def after_commit(
        self,
        function: Callable[[], object],
        *,
        before: Callable[[], object] | None = None,
        failed: Callable[[], object] | None = None,
    ) -> None:
        """Call ``function`` once the transaction is committed, never if it is rolled back.

        It belongs to the innermost open savepoint and is dropped with it. It runs on the
        committing thread, after the write lock is free; an exception is logged.

        :param before: called right before the COMMIT, under the write lock; an exception in it
            keeps the transaction from being committed.
        :param failed: called if the transaction is rolled back, when its COMMIT fails, say; not
            when only the savepoint is. An exception is logged.
        """
        self._after.works.append(Work(function, before, failed))

    def tune(
        self,
        *,
        busy_timeout: float,
        synchronous: Literal["OFF", "NORMAL", "FULL"],
        watch: bool,
        describe: Callable[[], str] | None,
        is_lent: Callable[[], bool] | None = None,
    ) -> None:
        """Set up a fresh connection; :func:`connect` and a tuned engine call it.

        :param is_lent: tells whether a pool has lent it: what is set before is meant to stay.
        :raises StoreError: if the file is not a SQLite database, or is damaged.
        :raises DataPathError: if run/ beside it cannot be used.
        """
        try:
            self._set_up(busy_timeout, synchronous, watch, describe, is_lent)
        except driver.DatabaseError as error:
            self.close()
            if not is_damaged(error):
                raise
            raise StoreError(
                f"{self._name} is not a SQLite database, or is damaged ({error}). Nothing was "
                "changed: move it away, or restore a backup."
            ) from error
        except OSError as error:
            self.close()
            path = Path(os.path.realpath(filesystem.path_of(self._name) or self._name))
            raise filesystem.run_trouble(error, path) from error

    def _set_up(
        self,
        busy_timeout: float,
        synchronous: str,
        watch: bool,
        describe: Callable[[], str] | None,
        is_lent: Callable[[], bool] | None,
    ) -> None:
        self._timeout = busy_timeout
        set_common(self)
        path = file_of(self)
        if path is None:
            return
        self._is_lent = is_lent  # in memory, the rows would go with an altered connection
        set_log(self, path, timeout=busy_timeout, synchronous=synchronous)
        self._synchronous = synchronous
        if os.access(path, os.W_OK) and os.access(path.parent, os.W_OK):
            self._file = file_at(path, describe)
            self._turn = Turn(self._file.queue)
        if watch:
            guard.watch(path, self)

    # -- the DB-API ---------------------------------------------------------------------------

    @property  # type: ignore[override]
    def isolation_level(self) -> str | None:
        """None: each statement commits by itself (SQLAlchemy's AUTOCOMMIT). Else "": see above."""
        return None if self._autocommit else ""

    @isolation_level.setter
    def isolation_level(self, level: str | None) -> None:
        if self.in_transaction:
            raise TransactionError("the isolation level cannot change inside a transaction.")
        self._autocommit = level is None

    def cursor(self, factory: type[Cursor] = Cursor) -> Cursor:  # type: ignore[override]
        if self._inherited or self._closed:
            self._check_usable()
        cursor = super().cursor(factory)
        if self._snapshot is not None:
            self._cursors.add(cursor)
        return cursor

    def execute(self, sql: str, parameters: Any = (), /) -> Cursor:
        return self.cursor().execute(sql, parameters)

    def executemany(self, sql: str, parameters: Iterable[Any], /) -> Cursor:
        return self.cursor().executemany(sql, parameters)

    def executescript(self, script: str, /) -> Cursor:
        return self.cursor().executescript(script)

    def commit(self) -> None:
        """Commit. If it fails the transaction has ended, too: all of it is rolled back.

        SQLite itself would leave it open, at a deferred foreign key that refers to nothing, say.
        SQLAlchemy takes a failed commit for the end and lends the connection out again, so that
        the next one would commit what failed, and meanwhile nobody else could write.
        """
        if not self._writing and not self._after.works and not self.in_transaction:
            if self._aborted:
                self._refuse_aborted(ends=True)
            return
        self._check_usable()
        if self._aborted:
            self._refuse_aborted(ends=True)
        try:
            self._close_cursors()
            for work in self._after.works:
                if work.before is not None:
                    work.before()
        except BaseException:
            self.rollback()
            raise
        try:
            super().commit()
            self._finish(committed=True)
        except driver.Error as error:
            self.rollback()
            refuse_full(error, self._name)
            raise
        except BaseException:  # Ctrl-C, say; perhaps when SQLite was done already
            if self.in_transaction:
                self.rollback()
            else:
                self._finish(committed=True)
            raise

    def rollback(self) -> None:
        if self._inherited:
            return  # the transaction is the parent process's
        self._aborted = ""
        try:
            self._close_cursors()
            if self.in_transaction:
                super().rollback()
        finally:
            self._finish(committed=False)

    def close(self) -> None:
        if self._inherited or self._closed:
            return  # see the module fork
        self._closed = True
        try:
            self._close_cursors()
            self._inside = True
            super().close()
        finally:
            self._inside = False
            fork.forget(self)
            self._finish(committed=False)
            guard.forget(self)

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, kind: object, *_: object) -> Literal[False]:
        if kind is None:
            self.commit()
        else:
            self.rollback()
        return False

    def __del__(self) -> None:
        # Lost without being closed: the turn in the queue must not be lost with it.
        if hasattr(self, "_turn") and not self._inherited:
            self._turn.release()

    # -- how statements run -------------------------------------------------------------------

    def _run(self, call: Callable[..., Any], *arguments: Any) -> None:
        """Run one statement, trying again while another process has the lock it needs."""
        try:
            call(*arguments)
        except driver.OperationalError as error:
            if not is_busy(error):
                self._note_failure()
                raise
            self._try_again(call, arguments, time.monotonic() + self._timeout, error)
        except BaseException:
            self._note_failure()
            raise

    def _wait_for_fork(self) -> None:
        self._inside = False
        fork.wait()
        self._inside = True

    def _change(self, statement: Statement, call: Callable[..., Any], *arguments: Any) -> None:
        """Run a statement that writes, or that controls a transaction."""
        self._check_usable()
        if self._aborted and statement.kind is not Kind.END:
            self._refuse_aborted()
        kind = statement.kind
        if kind is Kind.END:
            self._end(call, arguments)
        elif self._snapshot is not None:
            self._refuse_write()
        elif self.in_transaction:
            self._change_inside(statement, call, arguments)
        elif kind is Kind.ALONE or (self._autocommit and kind is Kind.WRITE):
            self._run_alone(call, arguments)
        elif kind is Kind.BEGIN_WRITE:
            self._begin(call, arguments)
        elif kind is Kind.BEGIN or self._autocommit:
            self._run(call, *arguments)
            self._track(statement)
        else:
            self._begin()
            self._run(call, *arguments)
            self._track(statement)

    def _run_alone(self, call: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        """Run a statement that is a transaction of its own."""
        try:
            self._turn.take_alone(time.monotonic() + self._timeout)
            self._run(call, *arguments)
        finally:
            self._turn.release()
        self._note_commit()

    def _change_inside(
        self, statement: Statement, call: Callable[..., Any], arguments: tuple[Any, ...]
    ) -> None:
        if not self._writing and statement.kind is Kind.WRITE and self._file is not None:
            self._write_in_snapshot(call, arguments)
        else:
            self._run(call, *arguments)
        self._track(statement)

    def _write_in_snapshot(self, call: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        """Make the first write of a transaction that the user began by a plain BEGIN."""
        try:
            self._turn.take(time.monotonic() + self._timeout)
            try:
                call(*arguments)
            except driver.OperationalError as error:
                if not is_busy(error, snapshot=True):
                    raise
                if is_stale(self, error, lambda: call(*arguments)):
                    raise StaleSnapshotError(
                        "another transaction committed since this one, begun by a plain BEGIN, "
                        "first read; it can only be rolled back. Take the lock first: "
                        "db.write(), or BEGIN IMMEDIATE."
                    ) from error
                deadline = time.monotonic() + self._timeout
                self._try_again(call, arguments, deadline, error)
            self._own()
        except BaseException:
            self._writing = False
            self._turn.release()
            self._note_failure()
            raise

    def _begin(
        self,
        call: Callable[..., Any] = _execute,
        arguments: tuple[Any, ...] = (),
    ) -> None:
        """Take the turn and the lock."""
        self._check_usable()
        if self._aborted:
            self._refuse_aborted()
        if self._snapshot is not None:
            self._refuse_write()
        deadline = time.monotonic() + self._timeout
        arguments = arguments or (driver.Connection.cursor(self), "BEGIN IMMEDIATE")
        try:
            self._turn.take(deadline)
            try:
                if self._file is not None and self._file.queue.owed():
                    self._try_again(call, arguments, deadline)
                else:
                    call(*arguments)
            except driver.OperationalError as error:
                if not is_busy(error):
                    raise
                self._try_again(call, arguments, deadline, error)
            self._own()
        except BaseException:
            self._writing = False
            if self.in_transaction:  # interrupted right after the BEGIN
                super().rollback()
            self._turn.release()
            raise

    def _try_again(
        self,
        call: Callable[..., Any],
        arguments: tuple[Any, ...],
        deadline: float,
        error: driver.OperationalError | None = None,
    ) -> None:
        for _ in self._turn.tries(deadline):
            try:
                call(*arguments)
                return
            except driver.OperationalError as again:
                if not is_busy(again):
                    self._note_failure()
                    raise
                error = again
        raise self._timed_out(error) from error

    def _timed_out(self, error: driver.OperationalError | None) -> LockError:
        if not self.in_transaction:
            self._turn.release()  # what begins by itself has a note there that it holds the lock
        return self._turn.timed_out(error, self._timeout)

    def _script(self, cursor: Cursor, script: str) -> None:
        self._check_usable()
        if self._snapshot is not None:
            self._refuse_write()
        self.commit()  # as the driver does
        try:
            self._turn.take_alone(time.monotonic() + self._timeout)
            self._set_busy_timeout(self._timeout)
            try:
                driver.Cursor.executescript(cursor, script)
            except driver.OperationalError as error:
                if is_busy(error):
                    raise self._timed_out(error) from error
                raise
            finally:
                self._set_busy_timeout(0)
        finally:
            if self.in_transaction:
                self._own()
            else:
                self._turn.release()
                self._note_commit()

    def _set_busy_timeout(self, seconds: float) -> None:
        """Have SQLite wait by itself, where it runs several statements in one call."""
        milliseconds = int(seconds * 1000)
        _execute(driver.Connection.cursor(self), f"PRAGMA busy_timeout = {milliseconds}")

    # -- ends ---------------------------------------------------------------------------------

    def _end(self, call: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        """Run the user's own COMMIT or ROLLBACK as ours."""
        commits = not arguments[1].lstrip().upper().startswith("ROLLBACK")
        if not commits:
            self.rollback()
        elif self.in_transaction or self._aborted:
            self.commit()
        else:
            call(*arguments)  # SQLite says that no transaction is active

    def _finish(self, *, committed: bool) -> None:
        """Let the next one write, then do what waited for the commit.

        The commit stands, whatever goes wrong here: the rest is done before an error is raised.
        """
        wrote, self._writing = self._writing, False
        self._snapshot = None
        try:
            self._turn.release()
            if committed and wrote:
                self._note_commit()
        finally:
            if self._after.works or self._after.savepoints:
                if committed:
                    self._after.committed()
                else:
                    self._after.rolled_back()

    def _track(self, statement: Statement) -> None:
        """Keep the work for after the commit in step with the savepoints."""
        kind = statement.kind
        if kind is Kind.SAVEPOINT:
            self._after.open(statement.name)
        elif kind is Kind.ROLLBACK_TO:
            self._after.roll_back_to(statement.name)
        elif (
            kind is Kind.RELEASE
            and self._after.release(statement.name)
            and not self.in_transaction  # the release of an outermost savepoint commits
        ):
            self._finish(committed=True)

    def _own(self) -> None:
        self._writing = True
        self._turn.begun()

    def _note_commit(self) -> None:
        if self._file is None or self._synchronous == "OFF":
            return
        noted = self._file.syncer.note()
        if self._synchronous == "FULL" or not noted:
            self._file.log.sync()

    def _note_setting(self) -> None:
        if self._is_lent is not None and self._is_lent():
            self._altered = True

    def _note_failure(self) -> None:
        """Remember when SQLite rolled the whole transaction back by itself (disk full, I/O)."""
        if self._writing and not self.in_transaction:
            self._aborted = "an error before this one made SQLite roll the transaction back"
            self._writing = False
            self._turn.release()
            self._after.drop()

    def _refuse_aborted(self, *, ends: bool = False) -> None:
        advice = "Begin again." if ends else "Call rollback(), then begin again."
        error = TransactionError(f"{self._aborted}; nothing of it is stored. {advice}")
        if ends:
            self.rollback()
        raise error

    def _refuse_write(self) -> None:
        raise ReadOnlyError("db.read() is for reading; use db.write() to change something.")

    def _check_usable(self) -> None:
        if self._inherited:
            raise TransactionError(
                "this connection belongs to the parent process; after a fork use a new session "
                "(a new app context)."
            )
        if self._closed:
            raise driver.ProgrammingError("Cannot operate on a closed database.")

    def _close_cursors(self) -> None:
        if self._cursors:
            for cursor in list(self._cursors):
                cursor.close()
            self._cursors.clear()

"""What has to be done about an error of SQLite's."""

from __future__ import annotations

from collections.abc import Callable

from ..errors import DiskFullError
from . import driver, filesystem

#: Free bytes below which a failure to open or to write is put down to the disk being full: a -shm
#: file has 32 KiB from its beginning.
LITTLE_SPACE = 64 * 1024

#: An extended code: of BUSY, where waiting is no use.
BUSY_SNAPSHOT = 517


def is_busy(error: driver.OperationalError, *, snapshot: bool = False) -> bool:
    """Whether another connection has the lock, so that it is right to try again.

    :param snapshot: whether a stale snapshot, where waiting is no use, counts too.
    """
    if getattr(error, "sqlite_errorcode", 0) == BUSY_SNAPSHOT:
        return snapshot
    return driver.error_code(error) == driver.BUSY


def is_stale(
    connection: driver.Connection, error: driver.OperationalError, again: Callable[[], object]
) -> bool:
    """Whether a write was refused because its transaction has read an older state.

    :param again: tries the write again; called where the driver does not tell.
    """
    if not driver.has_busy_handler:
        return getattr(error, "sqlite_errorcode", 0) == BUSY_SNAPSHOT
    # pysqlite3 tells only the primary code; but for a stale snapshot, where waiting is no
    # use, SQLite does not ask the busy handler.
    asked = []

    def give_up(count: int) -> int:
        asked.append(count)
        return 0

    set_busy_handler: Callable[[object], None] = getattr(connection, "set_busy_handler")  # noqa: B009
    set_busy_handler(give_up)
    try:
        again()
    except driver.OperationalError:
        return not asked
    finally:
        set_busy_handler(None)
    return False


def is_damaged(error: driver.DatabaseError) -> bool:
    """Whether the file is damaged, or not a SQLite database at all."""
    return driver.error_code(error) in (driver.CORRUPT, driver.NOTADB)


def is_read_only(error: driver.OperationalError) -> bool:
    """Whether the file cannot be written."""
    return driver.error_code(error) == driver.READONLY


def refuse_full(error: driver.Error, name: str) -> None:
    """Raise an error that says what to do, in place of SQLite's, if the disk is full.

    :param name: of the file, as SQLite was given it.
    :raises DiskFullError: in that case.
    """
    code = driver.error_code(error)
    if code not in (driver.FULL, driver.IOERR, driver.CANTOPEN):
        return
    if isinstance(error, DiskFullError):
        return  # said already: it came by way of commit()
    if (path := filesystem.path_of(name)) is None:
        return
    free = filesystem.free(path)
    if code == driver.FULL or free < LITTLE_SPACE:
        raise DiskFullError(
            f"there is no room for {path} to grow ({error}): its disk has {free} bytes free. "
            "Delete something or extend the volume; nothing that was committed is lost."
        ) from error

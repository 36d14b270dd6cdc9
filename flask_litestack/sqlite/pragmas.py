"""The pragmas of a fresh connection."""

from __future__ import annotations

from pathlib import Path

from ..errors import LockError
from . import driver
from .file import opening
from .trouble import is_read_only

#: SQLite's page cache of each connection, in KiB.
CACHE_KIB = 8 * 1024

#: The WAL is truncated to this many bytes when it starts anew.
WAL_LIMIT = 16 * 1024 * 1024

#: Pages in the WAL at which a commit checkpoints by itself; normally the syncer comes first.
AUTOCHECKPOINT = 4000


def set_common(connection: driver.Connection) -> None:
    """Set what a database in memory needs, too."""
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute(f"PRAGMA cache_size = {-CACHE_KIB}")


def file_of(connection: driver.Connection) -> Path | None:
    """Return the path of its file, None in memory."""
    name = connection.execute("PRAGMA database_list").fetchone()[2]
    return Path(name) if name else None


def set_log(connection: driver.Connection, path: Path, *, timeout: float, synchronous: str) -> None:
    """Set what a file's write-ahead log needs; switch a new file to it.

    :param timeout: seconds to wait for another process that sets the file up.
    :raises LockError: if the log cannot be used, or the other process does not end.
    """
    if _journal_mode(connection) != "wal":
        with opening(path, timeout):
            if _journal_mode(connection) != "wal":
                _use_wal(connection, path)
    # FULL would sync under the write lock, one commit after the other. Synced after it is
    # free, the commits of several processes reach the disk together.
    synchronous = "NORMAL" if synchronous == "FULL" else synchronous
    connection.execute(f"PRAGMA synchronous = {synchronous}")
    connection.execute(f"PRAGMA journal_size_limit = {WAL_LIMIT}")
    connection.execute(f"PRAGMA wal_autocheckpoint = {AUTOCHECKPOINT}")


def _journal_mode(connection: driver.Connection) -> str:
    mode: str = connection.execute("PRAGMA journal_mode").fetchone()[0]
    return mode


def _use_wal(connection: driver.Connection, path: Path) -> None:
    """Switch a new file to WAL; a file that cannot be written stays as it is."""
    try:
        mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    except driver.OperationalError as error:
        if is_read_only(error):
            return
        raise
    if mode != "wal":
        raise LockError(f"{path} cannot be used in WAL mode on this file system.")

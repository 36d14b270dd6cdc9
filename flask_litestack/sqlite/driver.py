"""The one SQLite library of this process.

Two SQLite libraries in one process drop each other's file locks, so everything here, our tests
and our tools included, goes through this module: the ``pysqlite3`` wheel (a current SQLite)
where there is one, the standard library's ``sqlite3`` elsewhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sqlite3 as dbapi
else:
    try:
        import pysqlite3.dbapi2 as dbapi
    except ImportError:
        import sqlite3 as dbapi

#: The DB-API module in use.
module = dbapi

Connection = dbapi.Connection
Cursor = dbapi.Cursor
Error = dbapi.Error
DatabaseError = dbapi.DatabaseError
IntegrityError = dbapi.IntegrityError
OperationalError = dbapi.OperationalError
ProgrammingError = dbapi.ProgrammingError

#: "pysqlite3" or "sqlite3".
name: str = dbapi.__name__.partition(".")[0]

version: str = dbapi.sqlite_version
version_info: tuple[int, ...] = tuple(map(int, version.split(".")))

#: Only pysqlite3 has Connection.set_busy_handler.
has_busy_handler: bool = hasattr(dbapi.Connection, "set_busy_handler")

#: Primary result codes (https://sqlite.org/rescode.html).
BUSY, LOCKED, READONLY, IOERR, CORRUPT, FULL, CANTOPEN, NOTADB = 5, 6, 8, 10, 11, 13, 14, 26

#: The errors of Connection.backup() have no code, only SQLite's words for it.
_CODES = {
    "database is locked": BUSY,
    "database disk image is malformed": CORRUPT,
    "database or disk is full": FULL,
    "file is not a database": NOTADB,
}


def error_code(error: BaseException) -> int:
    """Return SQLite's primary result code, 0 if the error has none."""
    code = getattr(error, "sqlite_errorcode", None)
    return int(code) & 0xFF if code is not None else _CODES.get(str(error), 0)


def has_wal_reset_race(version: tuple[int, ...] = version_info) -> bool:
    """Tell whether this SQLite can corrupt a WAL database used by several connections.

    Every version from 3.7.0 to 3.51.2 is affected but for the back-ports 3.50.7 and 3.44.6
    (https://sqlite.org/wal.html, "The WAL-reset bug").
    """
    if version >= (3, 51, 3) or version < (3, 7, 0):
        return False
    branch = version[:2]
    return not (
        (branch == (3, 50) and version >= (3, 50, 7))
        or (branch == (3, 44) and version >= (3, 44, 6))
    )

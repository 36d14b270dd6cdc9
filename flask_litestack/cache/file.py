"""The cache's file: made at first use, set aside when it is corrupt, never in the way."""

from __future__ import annotations

import logging
import os
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ..errors import NewerStoreError
from ..sqlite import driver, filesystem
from ..sqlite.driver import error_code
from ..sqlite.file import opening
from .connections import Connection, Pool
from .recency import Recency

log = logging.getLogger(__name__)

NAME = "cache.sqlite3"

#: The layout below, in the file's ``user_version``. Any other but 0 is not read.
VERSION = 1

PAGE = 4096

#: The smallest cap in bytes: below it the WAL and the table of deletes leave no room.
LEAST_SIZE = 1 << 20

#: Slots of the table of deletes. Two keys share one by chance, which costs a refused set at most.
SLOTS = 4096

#: The slot of a clear.
ALL = -1

SCHEMA: Sequence[str] = (
    # id: hash of the key. Neighbours are random, which eviction relies on.
    # expires: Unix time until which get() returns it; kept: until which it may be served stale.
    # written: the monotonic time of its lease; of the set itself, if it was set without one.
    "CREATE TABLE entries (id INTEGER PRIMARY KEY, key BLOB NOT NULL, expires REAL NOT NULL, "
    "kept REAL NOT NULL, written INTEGER NOT NULL, value NOT NULL)",
    # slot: low bits of the ids of deleted entries, -1 for all; stamp: monotonic time.
    "CREATE TABLE deletes (slot INTEGER PRIMARY KEY, stamp INTEGER NOT NULL)",
    "CREATE TABLE counters (name TEXT PRIMARY KEY, total INTEGER NOT NULL) WITHOUT ROWID",
)

#: All slots are there from the start: a delete needs no new page, so it works in a file that is
#: full to its cap. The parameter is their stamp.
FILL_DELETES = (
    "WITH RECURSIVE slots (slot) AS "
    f"(SELECT {ALL} UNION ALL SELECT slot + 1 FROM slots WHERE slot < {SLOTS - 1}) "
    "INSERT INTO deletes SELECT slot, ? FROM slots"
)


class CacheFile:
    """``cache.sqlite3`` in the data folder, and this process's connections to it.

    :param folder: the data folder; made if it is missing.
    :param size: the cap on the file and its WAL, in bytes.
    :param timeout: seconds to wait for another writer.
    :param watch: whether the guard watches the file.
    """

    def __init__(self, folder: Path, size: int, timeout: float, watch: bool) -> None:
        self.path = folder / NAME
        self.run_path = folder / "run"
        self.size = size
        pages = size // PAGE
        #: Pages in the WAL from which each commit checkpoints.
        self.wal_pages = min(1000, pages // 32)
        #: The most pages that the file itself may have; the rest is for a WAL that readers keep
        #: from being used again.
        self.pages = pages - 4 * self.wal_pages
        self.pool = Pool(self.path, timeout, self._prepare, watch)
        self.recency: Recency | None = None
        #: The one of the open file; if the recency table has another, the file was replaced.
        self.generation = 0
        self._inode = 0

    def batch(self, most: int) -> int:
        """Return how many rows to change in one transaction, so that the WAL keeps its size."""
        return max(8, min(most, self.wal_pages // 3))

    def open(self) -> Connection:
        """Open one more connection; the first one makes the file or replaces a useless one.

        :raises NewerStoreError: if a newer release has written it.
        :raises DataPathError: if the folder cannot be used.
        :raises driver.Error: for anything else that keeps it from opening.
        """
        if not self._inode:
            filesystem.prepare(self.path.parent)
        # While it is opened nobody may replace it: SQLite opens the -wal file later, by its name,
        # and would write what it read from the old file into the log of the new one.
        with opening(self.path):
            if self._inode and not self.moved():
                return self.pool.open()
            self.let_go()
            if self.recency is None:
                self.recency = Recency(self.run_path / "cache.recency", self.size, boot())
            if not self.path.exists() or not self.recency.of_this_boot:
                # Without syncs a power cut may have torn it, and its times are of another clock.
                self._remove()
            try:
                connection = self._open_checked()
            except driver.DatabaseError as error:
                if not is_corrupt(error):
                    raise
                self._set_aside(str(error))
                connection = self._open_checked()
            self.recency.mark()
            self.generation = self.recency.generation
            self._inode = os.stat(self.path).st_ino
        return connection

    def wal_size(self) -> int:
        """Return the bytes of the WAL."""
        try:
            return os.stat(f"{self.path}-wal").st_size
        except FileNotFoundError:
            return 0

    def moved(self) -> bool:
        """Whether someone has deleted or replaced the file that this process has open."""
        if not self._inode:
            return False
        try:
            return os.stat(self.path).st_ino != self._inode
        except OSError:
            return True

    def replace(self, connection: Connection, reason: str) -> bool:
        """Set the file of a connection aside and let go of it; False if someone already has."""
        with opening(self.path):
            if connection.home is not self.pool.idle:
                return False  # another thread has opened the next one
            moved = self.moved()
            if not moved:
                self._set_aside(reason)
            self.let_go()
            return not moved

    def discard(self) -> None:
        """Delete the file, whatever is in it, and let go of it.

        Emptied first: that gives its disk space back although processes have it open.
        """
        with opening(self.path):
            for suffix in ("", "-wal"):
                with suppress(FileNotFoundError, NotADirectoryError):
                    os.truncate(f"{self.path}{suffix}", 0)
            self._remove()
        self.let_go()

    def let_go(self) -> None:
        """Use the file no more; the next :meth:`open` begins anew."""
        self.pool.let_go()
        self._inode = 0

    def after_fork(self) -> None:
        """In the child: the parent's connections are not ours."""
        self.pool.forget()
        self._inode = 0

    def close(self) -> None:
        """Close everything; nothing may be in use."""
        self.pool.close()
        self._inode = 0
        if self.recency is not None:
            self.recency.close()
            self.recency = None

    def _open_checked(self) -> Connection:
        connection = self.pool.open()
        try:
            version = pragma(connection, "user_version")
            if version > VERSION:
                raise NewerStoreError(
                    f"{self.path} is of version {version}; this release knows {VERSION}. The "
                    "cache is not used until the newer release is deployed again or the file is "
                    "deleted."
                )
            if version == VERSION and pragma(connection, "page_count") <= self.pages * 1.05:
                return connection
        except BaseException:
            self.pool.discard(connection)
            raise
        # Of an older layout, of a start that was not finished, or far above the cap.
        self.pool.discard(connection)
        self._remove()
        connection = self.pool.open()
        try:
            self._create(connection)
        except BaseException:
            self.pool.discard(connection)
            raise
        return connection

    def _create(self, connection: Connection) -> None:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("BEGIN IMMEDIATE")
        for statement in SCHEMA:
            connection.execute(statement)
        # If this one replaces a file, what was deleted in that one is not known, so leases that
        # are older than this are refused.
        first = self.recency is None or not self.recency.of_this_boot
        connection.execute(FILL_DELETES, (-(1 << 62) if first else time.monotonic_ns(),))
        connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.execute("COMMIT")

    def _prepare(self, connection: Connection) -> None:
        connection.execute(f"PRAGMA max_page_count = {self.pages}")
        connection.execute(f"PRAGMA wal_autocheckpoint = {self.wal_pages}")
        connection.execute(f"PRAGMA journal_size_limit = {self.wal_pages * PAGE}")

    def _set_aside(self, reason: str) -> None:
        log.warning("the cache file is set aside as %s.corrupt: %s", self.path, reason)
        with suppress(FileNotFoundError):
            os.replace(self.path, f"{self.path}.corrupt")
        self._remove()

    def _remove(self) -> None:
        # The -wal and -shm of a deleted file would be taken for the new one's.
        for suffix in ("", "-wal", "-shm"):
            with suppress(FileNotFoundError, NotADirectoryError):
                os.unlink(f"{self.path}{suffix}")
        if self.recency is not None:
            self.recency.replaced()


def pragma(connection: Connection, name: str) -> int:
    """Read a number."""
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])


def is_busy(error: BaseException) -> bool:
    """Whether another connection had the lock for too long."""
    return error_code(error) in (5, 6)  # SQLITE_BUSY, SQLITE_LOCKED


def is_full(error: BaseException) -> bool:
    """Whether the cap, or the disk, has no room."""
    return error_code(error) == 13  # SQLITE_FULL


def is_corrupt(error: BaseException) -> bool:
    """Whether the file cannot be used any more: torn, truncated, or no cache file at all."""
    code = error_code(error)
    if code == 1:  # SQLITE_ERROR, of a mistake of ours too; another file has other tables
        return str(error).startswith("no such ") or "has no column" in str(error)
    return code in (10, 11, 26)  # SQLITE_IOERR, SQLITE_CORRUPT, SQLITE_NOTADB


def boot() -> str:
    """Name the machine's present boot. A container that is started again keeps it.

    Where the kernel does not tell, all boots are one.
    """
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        command = ["sysctl", "-n", "kern.bootsessionuuid"]  # macOS
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"

"""How the cache's file is used: by one writer of the process at a time, and watched."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from mmap import mmap
from pathlib import Path

from ..sqlite import driver
from .connections import Connection
from .counters import Counters, Statistics, read_statistics
from .file import CacheFile, is_corrupt
from .recency import GENERATION, Recency
from .room import Room
from .unavailable import Closed, Replaced, Unavailable
from .wal import Wal

#: Seconds to wait for another writer. After that a set is dropped.
WAIT = 1.0

#: Seconds between two looks at whether the file is still there.
LOOK = 1.0

#: Seconds until the file is tried again after it could not be opened.
PAUSE = 1.0

#: The most rows of one transaction, so that nobody waits long.
BATCH = 500


class Access:
    """The access to one cache file: connections, turns to write, and a new file for a useless one.

    What :class:`.store.Store` reads for each get and set is an attribute, not a method; only this
    class changes them.

    :param folder: the data folder.
    :param size: the cap in bytes on the file and its WAL.
    :param clock: returns the Unix time.
    :param watch: whether the guard watches the file.
    """

    def __init__(self, folder: Path, size: int, clock: Callable[[], float], watch: bool) -> None:
        self.file = CacheFile(folder, size, WAIT, watch)
        self.pool = self.file.pool
        self.wal = Wal(self.file, WAIT)
        self.room = Room(self.file, self.wal, clock)
        self._counters = Counters(self.pool)
        #: Held by the thread whose turn to write it is, see :meth:`take_turn`.
        self.mutex = threading.Lock()
        #: When :meth:`look` was last called.
        self.looked_at = 0.0
        self._closed_until = 0.0
        #: Of the open file.
        self.recency: Recency
        self.mask: int
        self.table: mmap | bytearray = bytearray(GENERATION + 1)
        #: The file was replaced if the table has another one.
        self.generation = 0

    # -- connections --------------------------------------------------------------------------

    def take(self, now: float) -> Connection:
        """Return a connection. It goes back to its ``home``, also after an error."""
        if not self.looked_at <= now < self.looked_at + LOOK or (
            self.table[GENERATION] != self.generation
        ):
            self.look(now)
        try:
            return self.pool.idle.pop()
        except IndexError:
            return self.open(now)

    def open(self, now: float) -> Connection:
        """Open one more connection, and the file if it is the first."""
        if self._closed_until - PAUSE <= now < self._closed_until:
            raise Closed("the cache could not be opened a moment ago")
        try:
            connection = self.file.open()
        except BaseException:
            self._closed_until = now + PAUSE
            raise
        recency = self.file.recency
        assert recency is not None  # made by the first open()
        self.recency = recency
        self.room.use(recency)
        self.table, self.mask = recency.table, recency.mask
        self.generation = self.file.generation
        return connection

    @contextmanager
    def taken(self, now: float) -> Iterator[Connection]:
        """Use a connection outside of a transaction."""
        connection = self.take(now)
        try:
            connection.enter()
            yield connection
        except driver.Error as error:
            self.failed(connection, error)
            raise
        finally:
            connection.inside = False
            connection.home.append(connection)

    # -- turns --------------------------------------------------------------------------------

    def take_turn(self, now: float, until: float | None = None) -> None:
        """Wait for the turn to write; whoever has it releases the mutex.

        :param until: when to give up, on the clock of ``time.monotonic()``; by default after a
            second.
        :raises Unavailable: if it has not come by then.
        """
        # Threads of a process queue here: SQLite's own waiting sleeps a millisecond and more.
        wait = WAIT if until is None else until - time.monotonic()
        if not self.looked_at <= now < self.looked_at + LOOK:
            self.look(now)  # before the turn is ours, because it may flush
        if wait <= 0 or not (
            self.mutex.acquire(blocking=False) or self.mutex.acquire(timeout=wait)
        ):
            raise Unavailable("others have been writing to the cache for too long")

    @contextmanager
    def writing(
        self, now: float, bounded: bool = False, until: float | None = None
    ) -> Iterator[Connection]:
        """Begin a transaction in turn; it ends with the block.

        :param bounded: whether it adds something, and so must keep the WAL small first.
        :param until: as of :meth:`take_turn`.
        """
        self.take_turn(now, until)
        try:
            with self.taken(now) as connection:
                if bounded:
                    self.wal.refuse_if_pinned(connection)
                with _transaction(connection, until):
                    yield connection
                if until is None:  # what is in a hurry leaves it to the next one
                    self.room.settle(connection)
        finally:
            self.mutex.release()

    # -- counters -----------------------------------------------------------------------------

    def flush(self, now: float) -> None:
        """Add what this process counted to the file's counters."""
        self.take_turn(now)
        try:
            self._counters.flush(now, self._flushing(now, None))
        finally:
            self.mutex.release()

    def statistics(self, now: float) -> Statistics:
        """Count. Walks through the whole table."""
        self.flush(now)
        with self.taken(now) as connection:
            return read_statistics(connection, now, self.file.size)

    @contextmanager
    def _flushing(self, now: float, until: float | None) -> Iterator[Connection]:
        with self.taken(now) as connection, _transaction(connection, until):
            yield connection

    # -- health -------------------------------------------------------------------------------

    def look(self, now: float) -> None:
        """Once a second: is the file still the one that has the name?"""
        self.looked_at = now
        if self.table[GENERATION] != self.generation or self.file.moved():
            self.let_go()
            return
        if self._counters.is_due(now) and self.mutex.acquire(blocking=False):
            try:
                with suppress(driver.Error):  # another time
                    self._counters.flush(now, self._flushing(now, time.monotonic()))
            finally:
                self.mutex.release()

    def failed(self, connection: Connection, error: driver.Error) -> None:
        """Replace a file that is of no use any more.

        :raises Replaced: if another process or thread already has.
        """
        if not is_corrupt(error):
            return
        first = self.file.replace(connection, str(error))
        self._forget()
        if not first:
            raise Replaced from error

    def discard(self) -> None:
        """Delete the file, for all processes; the next call makes a new one."""
        try:
            self.file.discard()
        finally:
            self._forget()

    def let_go(self) -> None:
        """Use the file no more; the next call opens whatever is there then."""
        self.file.let_go()
        self._forget()

    def after_fork(self) -> None:
        """In the child: nothing is open."""
        self.file.after_fork()
        self._forget()
        self.mutex = threading.Lock()

    def close(self) -> None:
        """Close the file; nothing may be in use."""
        self.table = bytearray(GENERATION + 1)
        self.file.close()
        self._forget()

    def _forget(self) -> None:
        self._counters.forget()
        self.room.forget()
        self.generation = self.table[GENERATION]


@contextmanager
def _transaction(connection: Connection, until: float | None = None) -> Iterator[None]:
    try:
        if until is not None:
            left = max(0, int((until - time.monotonic()) * 1000))
            connection.execute(f"PRAGMA busy_timeout = {left}")
        connection.run("BEGIN IMMEDIATE")
        yield
        connection.run("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        if until is not None:
            connection.execute(f"PRAGMA busy_timeout = {int(WAIT * 1000)}")

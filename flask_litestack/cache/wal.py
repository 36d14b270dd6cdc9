"""The cache's write-ahead log, kept small although somebody always reads."""

from __future__ import annotations

import random
import time

from .connections import Connection
from .file import PAGE, CacheFile
from .unavailable import Unavailable

#: Seconds to wait for the readers that keep the WAL from being emptied, and until the next wait.
CHECKPOINT_WAIT = 0.1
CHECKPOINT_PAUSE = 1.0


class Wal:
    """The WAL of a cache file. Used by one thread of the process at a time, the one that writes.

    :param timeout: seconds for which the connections wait for another writer.
    """

    def __init__(self, file: CacheFile, timeout: float) -> None:
        self._file = file
        self._timeout = timeout
        self._limit = file.wal_pages * PAGE
        self._size = 0
        self._checkpoint_at = 0.0

    def measure(self) -> bool:
        """Look at its size; return whether it is far too large."""
        self._size = self._file.wal_size()
        return self._size > 2 * self._limit

    def bound(self, connection: Connection) -> None:
        """Empty a WAL that has grown although each commit checkpoints.

        SQLite's own checkpoints do not wait. While several processes always read they never get
        to its end, and it is not used again from its beginning.
        """
        if self._size <= (2 * self._limit if connection.automatic else self._limit):
            return
        if connection.automatic:
            # With so many readers they would only be in the way of one that waits.
            connection.execute("PRAGMA wal_autocheckpoint = 0")
            connection.automatic = False
        began = now = time.monotonic()
        wait = CHECKPOINT_WAIT if began >= self._checkpoint_at else 0.0
        connection.execute(f"PRAGMA busy_timeout = {int(wait * 1000)}")
        try:
            while self._checkpoint(connection) and now < began + wait:
                # Someone else is at it, and needs a moment without writers.
                time.sleep(random.uniform(0.0005, 0.001))
                now = time.monotonic()
        finally:
            connection.execute(f"PRAGMA busy_timeout = {int(self._timeout * 1000)}")
        if wait and now >= began + wait:  # a reader is in the way: do not wait for it each time
            self._checkpoint_at = now + CHECKPOINT_PAUSE

    def refuse_if_pinned(self, connection: Connection) -> None:
        """Store nothing while readers keep it from being emptied, or the cap would not hold.

        :raises Unavailable: in that case.
        """
        most = 4 * self._limit
        if self._size <= most:
            return
        self.bound(connection)
        if self._size > most:
            raise Unavailable("others have been reading from it for too long to empty its WAL")

    def _checkpoint(self, connection: Connection) -> bool:
        """Try to empty it; return whether it is still far too large."""
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return self.measure()

"""What is counted, added to what the other processes counted."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

from .connections import COUNTERS, Connection, Pool
from .file import PAGE, pragma

#: Seconds between two writes of what this process counted.
FLUSH = 10.0


@dataclass(frozen=True)
class Statistics:
    """What all processes did with the cache since the file was made.

    Each process adds what it counted every ten seconds, and when it ends.
    """

    entries: int
    expired: int
    """Entries among these that wait to be overwritten."""
    used_size: int
    """Bytes of the file, without its free pages."""
    most_size: int
    """``LITESTACK_CACHE_SIZE``."""
    hits: int
    misses: int
    writes: int
    refused: int
    """Values not stored, because their key was deleted while they were computed."""
    evictions: int

    @property
    def hit_rate(self) -> float | None:
        """Hits per look-up, or None before the first one."""
        looked = self.hits + self.misses
        return self.hits / looked if looked else None


class Counters:
    """What was counted on the connections of a pool, and how much of it is in the file."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._flushed: dict[Connection, tuple[int, ...]] = {}
        self._flushed_at = 0.0

    def is_due(self, now: float) -> bool:
        """Whether the last flush was so long ago that there may be something to add."""
        due = not self._flushed_at <= now < self._flushed_at + FLUSH
        return due and bool(self._pool.all)

    def flush(self, now: float, transaction: AbstractContextManager[Connection]) -> None:
        """Add what was counted since the last time to the file's counters.

        :param transaction: entered only if there is something to add.
        """
        self._flushed_at = now
        counted = {c: tuple(getattr(c, name) for name in COUNTERS) for c in self._pool.all}
        none = (0,) * len(COUNTERS)
        more = [
            sum(counts[i] - self._flushed.get(c, none)[i] for c, counts in counted.items())
            for i in range(len(COUNTERS))
        ]
        if any(more):
            with transaction as connection:
                connection.executemany(
                    "INSERT INTO counters (name, total) VALUES (?, ?) "
                    "ON CONFLICT (name) DO UPDATE SET total = total + excluded.total",
                    list(zip(COUNTERS, more, strict=True)),
                )
            self._flushed = counted

    def forget(self) -> None:
        """Begin anew, with another file and other connections."""
        self._flushed = {}


def read_statistics(connection: Connection, now: float, most_size: int) -> Statistics:
    """Count. Walks through the whole table."""
    entries, expired = connection.execute(
        "SELECT count(*), coalesce(sum(expires <= ?), 0) FROM entries", (now,)
    ).fetchone()
    totals = dict(connection.execute("SELECT name, total FROM counters").fetchall())
    pages = pragma(connection, "page_count") - pragma(connection, "freelist_count")
    return Statistics(
        entries=entries,
        expired=expired,
        used_size=pages * PAGE,
        most_size=most_size,
        **{name: totals.get(name, 0) for name in COUNTERS},
    )

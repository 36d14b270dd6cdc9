"""How full the cache's file is, and what is evicted for what is inserted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

from .connections import Connection
from .entries import FIRST, LAST, ROW_BYTES, Entry
from .file import PAGE, CacheFile, pragma
from .recency import Recency
from .wal import Wal

#: Inserts after which a full cache evicts as many entries, and neighbours that are candidates.
#: Fewer at a time, out of a window as large, are better by half a point of hit rate at most
#: (benchmarks/cache_hit_rate.py), and slower: four by a fifth, one by half.
INSERTS_PER_EVICTION = 8
WINDOW = 64

#: From this need in bytes on whole leaves are emptied: only that frees pages.
LARGE = 16 * 1024

#: The most writes, and bytes, of this process between two looks at how full the file is.
WRITES_PER_CHECK = 32
BYTES_PER_CHECK = 64 * 1024


class Room:
    """The room in a cache file. Used by one thread of the process at a time, the one that writes.

    :param clock: returns the Unix time.
    """

    def __init__(self, file: CacheFile, wal: Wal, clock: Callable[[], float]) -> None:
        self._file = file
        self._wal = wal
        self._clock = clock
        self._recency: Recency
        #: Bytes to evict for two bytes inserted; 0 while there is room.
        self._eager = 0
        #: Inserts for which nothing was evicted yet. An attribute, as every set looks at it.
        self.owed_rows = 0
        self._owed_bytes = 0
        self._writes_to_check = 0
        self._bytes_to_check = 0

    def use(self, recency: Recency) -> None:
        """Take note of when the entries of the open file were last used."""
        self._recency = recency

    def forget(self) -> None:
        """Begin anew, with another file."""
        self._writes_to_check = 0
        self._eager = 0
        self.owed_rows = self._owed_bytes = 0

    # -- keeping account ----------------------------------------------------------------------

    @property
    def is_short(self) -> bool:
        """Whether inserts are paid for by evicting, so that it matters what is only updated."""
        return self._eager > 0

    def wrote(self, connection: Connection, entry: Entry, last: int | None) -> None:
        """Keep account of a write; ``last`` is the cursor's lastrowid."""
        number, size = entry.number, entry.size
        connection.writes += 1
        self._recency.wrote((number,), size)
        # An update leaves the last inserted id as it was.
        if number == last != connection.inserted:
            connection.inserted = number
            if self._eager:
                self.owed_rows += 1
                self._owed_bytes += size * self._eager // 2
        self._writes_to_check -= 1
        self._bytes_to_check -= size

    def wrote_many(
        self, connection: Connection, entries: Sequence[Entry], inserted: int, near: Entry
    ) -> None:
        """Keep account of writes, ``inserted`` of them inserts; evict what is owed for these."""
        size = sum(entry.size for entry in entries)
        connection.writes += len(entries)
        self._recency.wrote([entry.number for entry in entries], size)
        if self._eager and inserted > 0:
            self.owed_rows += inserted
            self._owed_bytes += size * inserted // len(entries) * self._eager // 2
            self.pay(connection, near)
        self._writes_to_check -= len(entries)
        self._bytes_to_check -= size

    def deleted(self, count: int) -> None:
        """Keep account of deletes."""
        self._writes_to_check -= count

    # -- looking ------------------------------------------------------------------------------

    def settle(self, connection: Connection) -> None:
        """After a commit, and now and then: look at how full the file is, and at its WAL."""
        if self._writes_to_check <= 0 or self._bytes_to_check <= 0:
            self._check(connection)
            self._wal.bound(connection)

    def has_room(self, connection: Connection, size: int) -> bool:
        """Whether the cap leaves room for so many bytes, so that only the disk can be full."""
        return self._free(connection) >= self._reserve + 2 * size // PAGE

    def _check(self, connection: Connection) -> None:
        """Look at how full the file is, and set how much is evicted for what is inserted."""
        self._writes_to_check = max(1, min(WRITES_PER_CHECK, self._file.wal_pages // 16))
        self._bytes_to_check = min(BYTES_PER_CHECK, self._file.wal_pages * PAGE // 4)
        if self._wal.measure():
            self._writes_to_check = 1
        free, reserve = self._free(connection), self._reserve
        self._eager = 0 if free >= reserve else 2 if free >= reserve // 2 else 3
        if not self._eager:
            self.owed_rows = self._owed_bytes = 0

    @property
    def _reserve(self) -> int:
        """Free pages below which entries are evicted."""
        return max(16, self._file.pages // 32)

    def _free(self, connection: Connection) -> int:
        """Return how many pages are free, or may still be added to the file."""
        used = pragma(connection, "page_count") - pragma(connection, "freelist_count")
        return self._file.pages - used

    # -- evicting -----------------------------------------------------------------------------

    def is_due(self) -> bool:
        """Whether enough is owed to bother."""
        return self.owed_rows >= INSERTS_PER_EVICTION or self._owed_bytes >= LARGE

    def pay(self, connection: Connection, entry: Entry) -> None:
        """Evict what is owed for the last inserts, near an entry, if it is enough to bother."""
        if self.is_due():
            owed, self._owed_bytes, self.owed_rows = self._owed_bytes, 0, 0
            self._evict(connection, entry.number, owed)

    def evict_much(self, connection: Connection, entry: Entry, need: int, attempt: int) -> None:
        """Evict after the file met its cap: more each time."""
        self._eager = 3
        self._evict(connection, entry.number, max(LARGE, 2 * need) << attempt)

    def _evict(self, connection: Connection, number: int, need: int) -> None:
        """Delete neighbours of an entry, of ``need`` bytes altogether: first the expired."""
        now = self._clock()
        most = WINDOW if need >= LARGE else WINDOW // 2
        start = number
        found = True
        while need > 0:  # the first window is mostly enough
            rows = connection.run(_NEIGHBOURS, (start,)).fetchall()
            sizes = {other: size for other, size, _ in rows}
            sizes.pop(number, None)
            victims = [other for other, _, kept in rows if kept <= now and other != number]
            need -= sum(sizes.pop(other) for other in victims)
            if need > 0:
                for other in self._recency.oldest_first(sizes)[:most]:
                    victims.append(other)
                    need -= sizes[other]
                    if need <= 0:
                        break
            if victims:
                connection.run(_delete_sql(len(victims)), victims)
                connection.evictions += len(victims)
                found = True
            if len(rows) == WINDOW and rows[-1][0] < LAST:
                start = rows[-1][0] + 1
            elif found:
                start, found = FIRST, False
            else:
                return  # a whole round without a victim: there is nothing left


_NEIGHBOURS = (
    f"SELECT id, length(key) + length(value) + {ROW_BYTES}, kept FROM entries WHERE id >= ? "
    f"ORDER BY id LIMIT {WINDOW}"
)


@lru_cache(maxsize=WINDOW)
def _delete_sql(count: int) -> str:
    return f"DELETE FROM entries WHERE id IN ({', '.join('?' * count)})"

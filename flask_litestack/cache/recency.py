"""When each entry was last used, in a byte, without a write to the database.

A file mapped into every process holds a table of bytes, indexed by the hash that is the entry's
id. A hit stores one byte there: 7 bits of time, and one that says "read since it was written".
Two entries that share a byte look as young as the younger; a lost table costs hit rate only.

What is evicted is chosen as in CLOCK and SIEVE: an entry that nobody has read since it was
written counts as half as old again, so that what is asked for once does not push out what is asked
for often. Candidates are the neighbours of the new entry in the order of ids, which is random: the
sampled eviction of Redis, with a sample that lies in the page about to be written. Measured
against FIFO, LRU and SIEVE by benchmarks/cache_hit_rate.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ..process.mapped import map_file

#: The table has a byte for each so many bytes of the cache. Several times as many as entries:
#: an entry that shares its byte with a popular one stays although nobody reads it.
BYTES_PER_SLOT = 32

#: The clock ticks so many times while the whole cache is written once. 127 ticks fit in a byte.
TICKS = 32

#: Times are compared modulo this; an entry not used for four turnovers is long gone.
_WRAP = 128

#: Where the slots begin: the one of an entry is at ``HEAD + (id & mask)``.
HEAD = 4096
_BOOT = slice(64, 128)
_WRITTEN = 0  # bytes written so far: an unsigned 64-bit integer
#: Where the present time is, as it is stored: shifted by one bit.
NOW = 8
#: Where a byte counts how often the cache file was replaced, so that everyone notices at once.
GENERATION = 9


def _age(past: int) -> int:
    """Return the age of an entry from "now minus its byte", modulo 256."""
    ticks = (past + 1 >> 1) % _WRAP + 1
    return 2 * ticks if past & 1 else 3 * ticks  # "now" is even


_AGES = tuple(map(_age, range(256)))


class Recency:
    """The table, shared by all processes that map the same file.

    :param path: the file, made if it is missing.
    :param size: bytes of the cache. Processes that disagree only see worse hit rates.
    :param boot: names the boot of the machine; see :attr:`of_this_boot`.
    """

    def __init__(self, path: Path, size: int, boot: str) -> None:
        slots = 1 << max(12, (size // BYTES_PER_SLOT - 1).bit_length())
        self.table = map_file(path, HEAD + slots)
        self.mask = slots - 1
        self._written = memoryview(self.table).cast("Q")
        self._tick_bytes = max(1, size // TICKS)
        self._mark = boot.encode().ljust(64)[:64]

    @property
    def of_this_boot(self) -> bool:
        """Whether :meth:`mark` was called since the machine was started."""
        return self.table[_BOOT] == self._mark

    def mark(self) -> None:
        """Say that the cache beside this file is of the machine's present boot."""
        self.table[_BOOT] = self._mark

    @property
    def generation(self) -> int:
        """Counts modulo 256 how often the file of the cache was replaced."""
        return self.table[GENERATION]

    def replaced(self) -> None:
        """Tell all processes to open the file anew."""
        self.table[GENERATION] = (self.table[GENERATION] + 1) % 256

    def read(self, number: int) -> None:
        """Note that the entry was read."""
        table = self.table
        table[HEAD + (number & self.mask)] = table[NOW] | 1

    def wrote(self, numbers: Iterable[int], size: int) -> None:
        """Note that entries of ``size`` bytes were written, while writing is yours alone."""
        written = self._written[_WRITTEN] = self._written[_WRITTEN] + size
        table, mask = self.table, self.mask
        table[NOW] = now = (written // self._tick_bytes) % _WRAP << 1
        for number in numbers:
            table[HEAD + (number & mask)] = now

    def oldest_first(self, numbers: Iterable[int]) -> list[int]:
        """Sort entries by how little they will be missed."""
        table, mask, now, ages = self.table, self.mask, self.table[NOW], _AGES
        return sorted(
            numbers,
            key=lambda number: ages[(now - table[HEAD + (number & mask)]) & 0xFF],
            reverse=True,
        )

    def close(self) -> None:
        """Unmap the table."""
        self._written.release()
        self.table.close()

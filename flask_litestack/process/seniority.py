"""Which of the processes that wait for the same lock has waited longest, and so goes first.

Nobody wakes who waits for SQLite's write lock: each tries again and again, and chance decides.
For short waits that is best, because handing the lock to a sleeping process costs the time until
it runs. But chance lets one of many wait for seconds. So whoever has waited for ``PATIENCE`` says
so on a board that all processes map, and the others let the oldest of these pass. What is on the
board counts only while its process keeps it fresh: a killed or stopped one holds up nobody.
"""

from __future__ import annotations

import mmap
import random
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from .mapped import map_file_or_memory

#: Seconds of waiting after which a process goes before those that came later.
PATIENCE = 0.008

#: Seconds after which an entry that its process has not renewed does not count.
FRESH = 0.02

#: Seconds between two tries of who goes first, and what each one further behind waits longer.
#: Half of it at least and one and a half at most, so that no two stay in step.
PAUSE = 0.0002

#: The longest pause, in seconds. Well below FRESH.
LONGEST = 0.003

#: Entries on the board; with more processes than these, some compete by chance alone.
SLOTS = 32

_OWED = struct.Struct("<d")  # until when the lock is owed to somebody
_SLOT = struct.Struct("<Qdd")  # the waiting process's random number, since when, last renewed
_BOARD = struct.Struct("<" + "Qdd" * SLOTS)
_WAITED = struct.Struct("<d")  # when somebody last had to wait
_WAITED_AT = _OWED.size + _BOARD.size
_SIZE = _WAITED_AT + _WAITED.size


class Board:
    """The waiting processes of one lock.

    Times are those of ``time.monotonic()``, which all processes of a machine share.

    :param path: a file for this purpose alone; it is created, and may be deleted when no process
        uses it.
    """

    def __init__(
        self,
        path: Path,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self._bytes = map_file_or_memory(path, _SIZE)

    def owed(self) -> bool:
        """Tell whether a newcomer has to let somebody pass. Costs a fraction of a microsecond."""
        until: float = _OWED.unpack_from(self._bytes)[0]
        # Far in the future is a time of before the machine's last start.
        return until != 0.0 and 0.0 < until - self._clock() <= FRESH

    def crowded(self) -> bool:
        """Tell whether another process has been waiting for the lock just now."""
        waited: float = _WAITED.unpack_from(self._bytes, _WAITED_AT)[0]
        return 0.0 <= self._clock() - waited <= FRESH

    def turns(self, deadline: float) -> Iterator[None]:
        """Yield each time it is right to try for the lock, and a last time at the deadline.

        Whoever got the lock stops iterating, which takes its entry off the board.
        """
        entry = _Entry(self._bytes, self._clock())
        try:
            while (now := self._clock()) < deadline:
                older, oldest = entry.renew(now)
                _WAITED.pack_into(self._bytes, _WAITED_AT, now)
                if now - entry.since >= PATIENCE:
                    _OWED.pack_into(self._bytes, 0, now + FRESH)
                if now - oldest < PATIENCE:
                    yield
                self._sleep(min(PAUSE * (1 + older), LONGEST) * random.uniform(0.5, 1.5))
            yield
        finally:
            entry.remove()


class _Entry:
    """This process's line on the board, while it waits."""

    def __init__(self, board: mmap.mmap, since: float) -> None:
        self.since = since
        self._board = board
        self._number = random.getrandbits(64) or 1
        self._slot = -1

    def renew(self, now: float) -> tuple[int, float]:
        """Say that this process still waits; count those that waited before it.

        Returns their number, and since when the oldest of them waits (or now).
        """
        older, oldest, own, free = 0, now, -1, []
        values = _BOARD.unpack_from(self._board, _OWED.size)
        for slot in range(SLOTS):
            number, since, renewed = values[3 * slot : 3 * slot + 3]
            if number == self._number:
                own = slot
            elif not number or not 0.0 <= now - renewed < FRESH:
                free.append(slot)
            elif (since, number) < (self.since, self._number):
                older += 1
                oldest = min(oldest, since)
        if own < 0 and free:
            own = random.choice(free)  # should another take it at the same time, one moves on
        if own >= 0:
            _SLOT.pack_into(self._board, _at(own), self._number, self.since, now)
        self._slot = own
        return older, oldest

    def remove(self) -> None:
        """Take the entry off the board, unless another process has overwritten it."""
        if self._slot >= 0:
            slot = _at(self._slot)
            if _SLOT.unpack_from(self._board, slot)[0] == self._number:
                _SLOT.pack_into(self._board, slot, 0, 0.0, 0.0)


def _at(slot: int) -> int:
    return _OWED.size + slot * _SLOT.size

"""Whose turn it is to write to a file: first come, first served, with a deadline.

SQLite lets one connection write at a time, but its own waiting has no queue: everybody sleeps and
tries again, so one of many may starve for seconds. Here the threads of a process line up, and
only the first of them competes with other processes. The queue is advisory: who does not take it
(a console, a foreign program) is still kept out by SQLite's own lock.
"""

from __future__ import annotations

import logging
import os
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import LockTimeout, SelfDeadlock
from . import activity
from .mapped import map_file_or_memory
from .seniority import Board
from .stack import Place

log = logging.getLogger(__name__)

#: Who holds the lock for longer than this, in seconds, is logged with the place of its first write.
LONG_HOLD = 1.0

RECORD = struct.Struct("<id200s")  # pid, time.monotonic() of the beginning, what it does

_yield: Callable[[], object] = getattr(os, "sched_yield", lambda: None)


@dataclass(frozen=True)
class Holder:
    """Who writes to the file right now."""

    pid: int
    seconds: float
    activity: str
    stopped: bool

    def __str__(self) -> str:
        state = ", which is stopped," if self.stopped else ""
        doing = f" ({self.activity})" if self.activity else ""
        return f"process {self.pid}{doing}{state} has held it for {self.seconds:.1f} s"


class Hold:
    """One turn: from before BEGIN IMMEDIATE to after COMMIT or ROLLBACK.

    Whoever wants one makes and keeps it before :meth:`WriteQueue.acquire`, so that an exception
    at any moment (a job's timeout, Ctrl-C) leaves it something to give back.
    """

    __slots__ = ("place", "since", "thread", "turn")

    def __init__(self) -> None:
        self.thread = threading.current_thread()  # its number would be used again
        self.since = time.monotonic()
        self.place = Place(skip=2)
        self.turn = threading.Lock()  # free once the turn has come, for who had to wait


class WriteQueue:
    """The writers of one file in this process, in order of arrival.

    :param path: the database file; the record of the holder is kept in ``run/`` beside it.
    :param describe: says what the calling thread is doing, for other processes' messages.
    """

    def __init__(self, path: Path, describe: Callable[[], str] = activity.describe) -> None:
        self._path = path
        self._describe = describe
        # Re-entrant: a connection that is garbage-collected in here gives its turn back.
        self._mutex = threading.RLock()
        self._current: Hold | None = None
        self._waiting: deque[Hold] = deque()
        self._record = _Record(path)
        self._board = Board(path.parent / "run" / f"{path.name}.waiting")

    def acquire(self, hold: Hold, deadline: float) -> None:
        """Wait for the turn. After an error the hold is not in line any more.

        :param deadline: on the clock of ``time.monotonic()``.
        :raises SelfDeadlock: if this thread has the turn already.
        :raises LockTimeout: if the turn did not come before the deadline.
        """
        try:
            with self._mutex:
                current = self._current
                if current is None:
                    self._current = hold
                    return
                if current.thread is hold.thread:
                    raise SelfDeadlock(self._deadlock(current, hold))
                hold.turn.acquire()
                self._waiting.append(hold)
                if self._current is None:
                    self._next()
            if not hold.turn.acquire(timeout=max(0.0, deadline - time.monotonic())):
                raise self.timeout(time.monotonic() - hold.since)
        except BaseException:
            self.release(hold)  # the turn may have come all the same
            raise
        hold.since = time.monotonic()

    def begun(self, hold: Hold) -> None:
        """Note that the file's own lock is taken, for the messages of other processes."""
        hold.since = time.monotonic()
        self._record.write(hold.since, self._describe())

    def owed(self) -> bool:
        """Tell whether another process has waited so long that it goes first."""
        return self._board.owed()

    def turns(self, deadline: float) -> Iterator[None]:
        """Yield each time that this process, while another has the file's lock, may try for it."""
        return self._board.turns(deadline)

    def release(self, hold: Hold) -> None:
        """End the turn and give it to the next thread in line; or end the waiting for it.

        Does nothing if the hold has neither, so it is safe to call again.
        """
        with self._mutex:
            if self._current is not hold:
                if hold in self._waiting:
                    self._waiting.remove(hold)
                return
            self._record.clear()
            self._next()
        if self._board.crowded():
            # Writers who do not wait use up their time slices, and then are interrupted in the
            # middle of a transaction, while all others wait for them.
            _yield()
        if (seconds := time.monotonic() - hold.since) > LONG_HOLD:
            log.warning(
                "%s held the write lock of %s for %.1f s; do slow work first and write last. "
                "Its first write:\n%s",
                self._describe(),
                self._path.name,
                seconds,
                hold.place.format(),
            )

    def holder(self) -> Holder | None:
        """Return who of the processes that use this queue writes right now."""
        return self._record.read()

    def timeout(self, seconds: float) -> LockTimeout:
        """Build the error for a wait that was in vain."""
        holder = self.holder()
        who = f"{holder}" if holder else "the holder is not one of this stack's processes"
        return LockTimeout(
            f"the write lock of {self._path} was not free within {seconds:.1f} s; {who}. "
            "Raise LITESTACK_BUSY_TIMEOUT or make that transaction shorter."
        )

    def _next(self) -> None:
        if not self._waiting:
            self._current = None
            return
        # An interrupt comes at calls only: none between these two.
        self._current = hold = self._waiting[0]
        del self._waiting[0]
        hold.turn.release()

    def _deadlock(self, current: Hold, hold: Hold) -> str:
        return (
            f"this thread already writes to {self._path} on another connection, and would wait for "
            f"itself for ever. It began at {current.place}; the second write is at {hold.place}. "
            "Use one session for both, or commit the first."
        )


class _Record:
    """Who holds the lock, in a few bytes that every process maps."""

    def __init__(self, path: Path) -> None:
        self._bytes = map_file_or_memory(path.parent / "run" / f"{path.name}.writer", RECORD.size)

    def write(self, since: float, what: str) -> None:
        RECORD.pack_into(self._bytes, 0, os.getpid(), since, what.encode()[:200])

    def clear(self) -> None:
        # The lock is free already: the record may be the next holder's by now.
        if RECORD.unpack_from(self._bytes)[0] == os.getpid():
            RECORD.pack_into(self._bytes, 0, 0, 0.0, b"")

    def read(self) -> Holder | None:
        pid, since, what = RECORD.unpack_from(self._bytes)
        state = _state(pid) if pid else ""
        if not state:
            return None
        text = what.rstrip(b"\0").decode(errors="replace")
        return Holder(pid, time.monotonic() - since, text, state == "T")


def _state(pid: int) -> str:
    """Return the kernel's letter for a process's state, "" for a dead one."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        if os.path.isdir("/proc/self"):
            return ""
    else:
        letter = stat.rpartition(")")[2].split()[0]
        return "" if letter in "ZX" else letter
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    return "?"

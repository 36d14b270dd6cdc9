"""A connection's turn to write."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

from ..errors import LockError
from ..process.writequeue import Hold, WriteQueue
from . import driver

#: Bounds in seconds of the random sleep between two tries to read a file that we cannot write to,
#: where there is no queue.
RETRY = (0.0002, 0.001)


class Turn:
    """The place of one connection in the queue of a file's writers.

    :param queue: None for a file in memory, or one that we cannot write to: it is always our turn.
    """

    def __init__(self, queue: WriteQueue | None) -> None:
        self._queue = queue
        self._hold: Hold | None = None

    def take(self, deadline: float) -> None:
        """Wait for the turn.

        :param deadline: on the clock of ``time.monotonic()``.
        :raises LockTimeout: if it has not come by then.
        :raises SelfDeadlock: if this thread has it on another connection.
        """
        if self._queue is not None:
            if self._hold is not None:
                self.release()  # an interrupt has kept us from it
            self._hold = Hold()
            self._queue.acquire(self._hold, deadline)

    def take_alone(self, deadline: float) -> None:
        """Take the turn for what takes the lock by itself, and perhaps has to wait for it."""
        self.take(deadline)
        if self._queue is not None and self._queue.holder() is None:
            self.begun()

    def begun(self) -> None:
        """Note that the file's own lock is taken."""
        if self._queue is not None and self._hold is not None:
            self._queue.begun(self._hold)

    def release(self) -> None:
        """Let the next one write. Does nothing if it is not our turn."""
        if self._hold is not None and self._queue is not None:
            self._queue.release(self._hold)
            self._hold = None

    def tries(self, deadline: float) -> Iterator[None]:
        """Yield whenever it is right to try for the file's lock again."""
        if self._queue is not None:
            yield from self._queue.turns(deadline)
            return
        while time.monotonic() < deadline:
            time.sleep(random.uniform(*RETRY))
            yield

    def timed_out(self, error: driver.OperationalError | None, seconds: float) -> LockError:
        """Build the error for tries that were in vain for so long."""
        if self._queue is None:
            return LockError(f"{error}; waited {seconds:.1f} s")
        return self._queue.timeout(seconds)

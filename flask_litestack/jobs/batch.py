"""How many jobs to claim at once."""

from __future__ import annotations

#: Seconds of work for each thread that a worker claims ahead.
BUDGET = 0.005

#: Jobs claimed ahead at most.
LARGEST = 256

_WEIGHT = 0.1


class BatchSize:
    """Learns from how long jobs take: short ones are claimed many at a time, long ones singly."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._mean = BUDGET

    def learn(self, seconds: float) -> None:
        """Take the duration of one more job into account. A long one counts at once."""
        if seconds > BUDGET:
            self._mean = max(self._mean, BUDGET)
        self._mean += (min(seconds, BUDGET) - self._mean) * _WEIGHT

    @property
    def size(self) -> int:
        """How many jobs a worker should have: at least one for each thread."""
        ahead = self._threads * BUDGET / max(self._mean, 1e-6)
        return max(self._threads, min(LARGEST, int(ahead)))

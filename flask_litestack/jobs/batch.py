"""How many jobs to claim at once."""

from __future__ import annotations

#: Seconds of work for each thread that a worker claims ahead.
BUDGET = 0.005

#: Jobs claimed ahead at most.
LARGEST = 256

_WEIGHT = 0.1


class BatchSize:
    """Learns from how long jobs take: short ones are claimed many at a time, long ones singly."""

    def __init__(self) -> None:
        self._mean = BUDGET

    def learn(self, seconds: float) -> None:
        """Take the duration of one more job into account."""
        self._mean += (min(seconds, BUDGET) - self._mean) * _WEIGHT

    def size(self, threads: int) -> int:
        """How many jobs keep so many threads busy for a while: at least one for each."""
        ahead = threads * BUDGET / max(self._mean, 1e-6)
        return max(threads, min(LARGEST, int(ahead)))

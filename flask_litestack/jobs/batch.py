"""How many jobs to claim at once, and how many threads to give them to."""

from __future__ import annotations

#: Seconds of work for each thread that a worker claims ahead.
BUDGET = 0.02

#: Jobs claimed ahead at most.
LARGEST = 256

#: Jobs that compute for less than so many seconds are short.
SHORT = 0.002

_WEIGHT = 0.1


class BatchSize:
    """Learns from how long jobs take: short ones are claimed many at a time, long ones singly."""

    def __init__(self) -> None:
        self._mean = BUDGET
        self._busy = 0.0

    def learn(self, seconds: float, busy: float) -> None:
        """Take one more job into account: how long it took, and its processor time."""
        self._mean += (min(seconds, BUDGET) - self._mean) * _WEIGHT
        self._busy += (min(busy, BUDGET) - self._busy) * _WEIGHT

    def size(self, threads: int) -> int:
        """How many jobs keep so many threads busy for a while: at least one for each."""
        at_work = 1 if self.is_crowded(threads) else threads
        ahead = at_work * BUDGET / max(self._mean, 1e-6)
        return max(threads, min(LARGEST, int(ahead)))

    def is_crowded(self, threads: int) -> bool:
        """Tell whether so many threads at work are too many.

        They are if the jobs are short and take about as long as it takes all threads to compute
        theirs one after the other, rather than longer: so they wait for each other only.
        """
        return self._busy < SHORT and self._mean < 2 * self._busy * threads

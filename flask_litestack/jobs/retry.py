"""What becomes of a job whose task raised an exception."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass


class Retry(Exception):
    """Raise it in a task to have the job run again.

    :param delay: seconds until then. None: by the task's :class:`RetryPolicy`.
    :param reason: kept with the attempt.

    It counts as a retry: once the task's retries are used up, the job fails.
    """

    def __init__(self, reason: str = "", *, delay: float | None = None) -> None:
        super().__init__(reason or "the task asked to be run again")
        self.delay = delay


class Discard(Exception):
    """Raise it in a task to end the job as cancelled: there is nothing left to do.

    :param reason: kept with the attempt.
    """

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason or "the task discarded the job")


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """When to run a failed job again. Times are in seconds.

    The n-th retry comes ``first_delay * factor ** (n - 1)`` seconds after the failure, at most
    ``max_delay``, longer or shorter by up to the ``jitter`` (a share), so that jobs that failed
    together do not come back together. By default: after about 5 s, 20 s and 80 s.

    :param limit: how often at most. None: for ever.
    :param retry_on: the exceptions that are worth a retry; others fail at once.
    :param fail_on: exceptions that fail at once nevertheless.
    :param discard_on: exceptions that end the job as cancelled.
    """

    limit: int | None = 3
    first_delay: float = 5.0
    factor: float = 4.0
    max_delay: float = 3600.0
    jitter: float = 0.2
    retry_on: tuple[type[Exception], ...] = (Exception,)
    fail_on: tuple[type[Exception], ...] = ()
    discard_on: tuple[type[Exception], ...] = ()

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 0:
            raise ValueError("the limit of a RetryPolicy is a number of at least 0, or None")
        if self.first_delay < 0 or self.factor < 1 or not 0 <= self.jitter <= 1:
            raise ValueError(
                "a RetryPolicy needs first_delay >= 0, factor >= 1 and 0 <= jitter <= 1"
            )

    def delay(self, retry: int, uniform: Callable[[float, float], float] = random.uniform) -> float:
        """Return the seconds to wait before a retry; the first is number 1."""
        try:
            delay = min(self.max_delay, self.first_delay * self.factor ** (retry - 1))
        except OverflowError:
            delay = self.max_delay
        return delay * uniform(1 - self.jitter, 1 + self.jitter)

    def allows(self, retry: int, limit: int | None) -> bool:
        """Tell whether there may be this retry; ``limit`` is the job's own, if it has one."""
        limit = self.limit if limit is None else limit
        return limit is None or retry <= limit

    def discards(self, error: BaseException) -> bool:
        """Tell whether this exception means that there is nothing left to do."""
        return isinstance(error, (Discard, *self.discard_on))

    def retries(self, error: BaseException) -> bool:
        """Tell whether a job that raised this is worth another try."""
        if isinstance(error, Retry):
            return True
        return isinstance(error, self.retry_on) and not isinstance(error, self.fail_on)

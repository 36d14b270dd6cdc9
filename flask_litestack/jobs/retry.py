"""What becomes of a job whose task raised an exception."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from .checks import is_whole, seconds

#: What ``except`` takes, too.
Exceptions = type[BaseException] | tuple[type[BaseException], ...]


class Retry(Exception):
    """Raise it in a task to have the job run again.

    :param delay: how long until then, as a timedelta or seconds. None: by the task's
        :class:`RetryPolicy`.
    :param reason: kept with the attempt.
    :raises ValueError: if the delay is no length of time.

    It counts as a retry: once the task's retries are used up, the job fails.
    """

    def __init__(self, reason: str = "", *, delay: timedelta | float | None = None) -> None:
        super().__init__(reason or "the task asked to be run again")
        self.delay = None if delay is None else seconds("delay=", delay)


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
    :param retry_on: the exceptions that are worth a retry, one class or a tuple of them; others
        fail at once.
    :param fail_on: exceptions that fail at once nevertheless.
    :param discard_on: exceptions that end the job as cancelled.
    :raises ValueError: naming the parameter that makes no sense.
    """

    limit: int | None = 3
    first_delay: float = 5.0
    factor: float = 4.0
    max_delay: float = 3600.0
    jitter: float = 0.2
    retry_on: Exceptions = (Exception,)
    fail_on: Exceptions = ()
    discard_on: Exceptions = ()

    def __post_init__(self) -> None:
        if self.limit is not None and not is_whole(self.limit, 0):
            raise ValueError("the limit of a RetryPolicy is a number of at least 0, or None")
        for name in ("first_delay", "max_delay"):
            length = seconds(f"{name}= of a RetryPolicy", getattr(self, name))
            if length < 0:
                raise ValueError(f"{name}= of a RetryPolicy is at least 0")
            object.__setattr__(self, name, length)  # a timedelta, too
        if not 1 <= self.factor < math.inf or not 0 <= self.jitter <= 1:
            raise ValueError("a RetryPolicy needs factor >= 1 and 0 <= jitter <= 1")
        for name in ("retry_on", "fail_on", "discard_on"):
            given = getattr(self, name)
            for error in given if isinstance(given, tuple) else (given,):
                if not (isinstance(error, type) and issubclass(error, BaseException)):
                    raise ValueError(
                        f"{name}= of a RetryPolicy is an exception class or a tuple of them, "
                        f"not {given!r}"
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
        return isinstance(error, (Discard, self.discard_on))

    def retries(self, error: BaseException) -> bool:
        """Tell whether a job that raised this is worth another try."""
        if isinstance(error, Retry):
            return True
        return isinstance(error, self.retry_on) and not isinstance(error, self.fail_on)

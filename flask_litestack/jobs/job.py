"""One call of a task, as it was at one moment."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, get_args

from .arguments import decode

State = Literal["scheduled", "queued", "running", "succeeded", "failed", "cancelled"]

STATES: tuple[State, ...] = get_args(State)

#: A job in one of these does nothing any more.
FINISHED: tuple[State, ...] = ("succeeded", "failed", "cancelled")


@dataclass(frozen=True, slots=True)
class Job:
    """What ``enqueue()`` and ``litestack.jobs`` return. Read it again with ``jobs.get(job.id)``."""

    id: int
    task: str
    state: State
    queue: str
    priority: int
    arguments: str
    """The JSON text of the call; see :attr:`args` and :attr:`kwargs`."""
    created_at: datetime
    run_at: datetime
    """When it became, or becomes, due."""
    started_at: datetime | None = None
    """The beginning of the last attempt."""
    finished_at: datetime | None = None
    failures: int = 0
    """How many attempts raised an exception."""
    crashes: int = 0
    """How many attempts ended with the death of the worker process."""
    worker: str | None = None
    unique_key: str | None = None
    cancel_requested: bool = False
    new: bool = True
    """False if ``enqueue()`` found an equal unique job, and this is that one."""

    @property
    def args(self) -> list[Any]:
        """The positional arguments."""
        return decode(self.arguments)[0]

    @property
    def kwargs(self) -> dict[str, Any]:
        """The named arguments."""
        return decode(self.arguments)[1]


@dataclass(frozen=True, slots=True)
class Attempt:
    """An attempt at a job that did not succeed."""

    number: int
    at: datetime
    error: str
    """Such as "ValueError: no such user"."""
    traceback: str
    worker: str | None


def moment(seconds: float | None) -> datetime | None:
    """Return the aware datetime of seconds since the epoch, or the nearest that there is."""
    if seconds is None:
        return None
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        return _LAST if seconds > 0 else _FIRST


_FIRST, _LAST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)

"""A declared function, and calls of it."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import update_wrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, ParamSpec, TypeVar

from ..errors import ArgumentsError, ConfigError
from . import arguments
from .checks import is_whole, seconds
from .claims import ANY_QUEUE
from .cron import Schedule
from .job import Job
from .retry import RetryPolicy

if TYPE_CHECKING:
    from .queue import JobQueue

P = ParamSpec("P")
R = TypeVar("R")

Unique = Literal[False, "queued", "queued or running"]

_UNIQUE: tuple[Unique, ...] = (False, "queued", "queued or running")


@dataclass(frozen=True, slots=True)
class Declaration:
    """What ``@litestack.task(...)`` says about every job of a task."""

    name: str
    policy: RetryPolicy
    timeout: float | None
    cron: str | None
    timezone: str | None
    unique: Unique


@dataclass(frozen=True, slots=True)
class Options:
    """What ``.using(...)`` may change for a single job."""

    queue: str = "default"
    priority: int = 0
    run_after: datetime | float | None = None
    retries: int | None = None
    unique_key: str | None = None
    after_commit: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """A task with its arguments, to be enqueued: the arguments are checked and JSON already."""

    declaration: Declaration
    options: Options
    arguments: str
    key: str | None
    """What equal calls have in common, if there is to be only one of them."""


class Task(Generic[P, R]):
    """A function that can be called now, or enqueued as a job. Made by ``@litestack.task``."""

    def __init__(
        self,
        function: Callable[P, R],
        queue: JobQueue,
        declaration: Declaration,
        options: Options,
    ) -> None:
        update_wrapper(self, function)
        self.function = function
        self.declaration = declaration
        self.options = options
        self._queue = queue
        self._signature = inspect.signature(function)
        self._bounds = _positional_bounds(self._signature)

    @property
    def name(self) -> str:
        """The name that is stored with its jobs: "module.function" unless ``name=`` was given."""
        return self.declaration.name

    def __repr__(self) -> str:
        return f"<Task {self.name}>"

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the function here and now."""
        return self.function(*args, **kwargs)

    def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> Job:
        """Have a worker run the function; return the job.

        Inside a job, in ``db.write()``, in an explicit ``session.begin()`` and when the session
        has uncommitted changes, the job is part of that transaction: it exists when that commits,
        and not if it is rolled back. Otherwise it is stored at once.

        :raises ArgumentsError: if the arguments do not fit the function, or are not JSON.
        """
        return self._queue.enqueue(self.call(*args, **kwargs))

    def call(self, *args: P.args, **kwargs: P.kwargs) -> Call:
        """Prepare a call for ``litestack.jobs.enqueue_many()``.

        :raises ArgumentsError: if the arguments do not fit the function, or are not JSON.
        """
        self._check(args, kwargs)
        text = arguments.encode(self.declaration.name, args, kwargs)
        key = self.options.unique_key
        if key is None and self.declaration.unique:
            key = arguments.digest(self.declaration.name, self.bind(args, kwargs))
        return Call(self.declaration, self.options, text, key)

    def using(
        self,
        *,
        queue: str | None = None,
        priority: int | None = None,
        run_after: timedelta | datetime | float | None = None,
        retries: int | None = None,
        unique_key: str | None = None,
        after_commit: bool | None = None,
    ) -> Task[P, R]:
        """Return the task with other options for the jobs that are enqueued through it.

        :param priority: the higher, the sooner.
        :param run_after: when, as an aware datetime; or how long from now, as a timedelta or
            seconds.
        :param retries: how often a failed attempt is repeated.
        :param unique_key: what an equal job would have in common with it, by default its
            arguments. For a task declared without ``unique=`` it means ``unique="queued"``.
        :param after_commit: wait for the session's next commit, whatever state it is in.
        :raises ConfigError: if that cannot be the name of a queue, or a priority.
        :raises ValueError: if another parameter makes no sense.
        """
        if isinstance(run_after, datetime):
            if run_after.tzinfo is None:
                raise ValueError("run_after= needs an aware datetime, e.g. datetime.now(UTC) + ...")
        elif run_after is not None:
            run_after = seconds("run_after=", run_after)
        if retries is not None and not is_whole(retries, 0):
            raise ValueError("retries= is a number of at least 0")
        changes: dict[str, Any] = {
            "queue": None if queue is None else check_queue(queue),
            "priority": None if priority is None else check_priority(priority),
            "run_after": run_after,
            "retries": retries,
            "unique_key": unique_key,
            "after_commit": after_commit,
        }
        given = {name: value for name, value in changes.items() if value is not None}
        return Task(self.function, self._queue, self.declaration, replace(self.options, **given))

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of a call by parameter, without those that are the default anyway.

        :raises ArgumentsError: if they do not fit the function.
        """
        parameters = self._signature.parameters
        return {
            name: value
            for name, value in self._bound(args, kwargs).items()
            if type(value) is not type(default := parameters[name].default) or value != default
        }

    def _check(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._bounds is not None and not kwargs:
            least, most = self._bounds
            if least <= len(args) <= most:
                return
        self._bound(args, kwargs)

    def _bound(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return self._signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise ArgumentsError(f"{self.name}{self._signature} cannot be enqueued: {error}") from (
                None
            )


def check_queue(name: str) -> str:
    """Return the name of a queue if it is one.

    :raises ConfigError: if it is not.
    """
    if not name or name == ANY_QUEUE or "," in name or name != name.strip():
        raise ConfigError(f"{name!r} cannot be the name of a queue.")
    return name


def check_priority(priority: int) -> int:
    """Return a priority if it is one.

    :raises ConfigError: if it is not.
    """
    if not is_whole(priority, -(2**63)):
        raise ConfigError(f"priority= is a whole number, not {priority!r}.")
    return priority


def declare(
    function: Callable[..., Any],
    *,
    name: str | None,
    retries: int | RetryPolicy | None,
    timeout: float | None,
    cron: str | None,
    timezone: str | None,
    unique: Unique,
) -> Declaration:
    """Check what ``@litestack.task`` was given.

    :raises ConfigError: naming the parameter that is wrong.
    """
    name = name or _name(function)
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ConfigError(f"task {name} has a yield in it: calling it would run nothing.")
    try:
        timeout = None if timeout is None else seconds("timeout=", timeout)
    except ValueError as error:
        raise ConfigError(f"task {name}: {error}.") from None
    if timeout is not None and timeout <= 0:
        raise ConfigError(f"task {name}: timeout= is a number of seconds above 0, or None.")
    if not (retries is None or isinstance(retries, RetryPolicy) or is_whole(retries, 0)):
        raise ConfigError(
            f"task {name}: retries= is a number of at least 0, a RetryPolicy, or None."
        )
    if unique not in _UNIQUE:
        raise ConfigError(f"task {name}: unique= is one of {', '.join(map(repr, _UNIQUE))}.")
    if cron is not None:
        Schedule(cron, timezone or "UTC")
        try:
            inspect.signature(function).bind()
        except TypeError as error:
            raise ConfigError(
                f"task {name} has cron=, which calls it without arguments: {error}."
            ) from None
    policy = retries if isinstance(retries, RetryPolicy) else RetryPolicy(limit=retries)
    return Declaration(name, policy, timeout, cron, timezone, unique)


def _name(function: Callable[..., Any]) -> str:
    module = function.__module__
    if module == "__main__":
        # `python app.py` and `flask --app app` must mean the same task.
        main = sys.modules["__main__"]
        spec = getattr(main, "__spec__", None)
        module = spec.name if spec else Path(getattr(main, "__file__", "") or "__main__").stem
    return f"{module}.{function.__qualname__}"


def _positional_bounds(signature: inspect.Signature) -> tuple[int, int] | None:
    """Return how few and how many positional arguments fit; None if that is not all there is."""
    parameters: Iterable[inspect.Parameter] = signature.parameters.values()
    least = most = 0
    for parameter in parameters:
        if parameter.kind not in (
            inspect.Parameter.POSITIONAL_ONLY,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
        ):
            return None
        most += 1
        least += parameter.default is inspect.Parameter.empty
    return least, most

"""Helpers for the tests of an app: run its jobs here and now, see what was enqueued, stop time.

With pytest the fixture ``jobs`` of the plugin in :mod:`flask_litestack.pytest_plugin` gives a
:class:`JobTester` for your fixture ``app``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

from flask import Flask

from .extension import NAME, Litestack
from .jobs.claims import Claims, Retention
from .jobs.current import CurrentJob
from .jobs.job import Job
from .jobs.runner import Runner
from .jobs.task import Task
from .jobs.timetable import Timetable
from .process.liveness import Life


class JobFailed(AssertionError):
    """Raised by :meth:`JobTester.run` when a job does not succeed; has the task's traceback."""


class Clock:
    """Seconds since the epoch, as the tests say."""

    def __init__(self, now: float) -> None:
        self._now = now

    def __call__(self) -> float:
        return self._now

    def advance(self, by: timedelta | float) -> None:
        """Let time go by."""
        self._now += by.total_seconds() if isinstance(by, timedelta) else by

    def set(self, at: datetime) -> None:
        """Go to a moment; it may be in the past."""
        self._now = at.timestamp()


class JobTester:
    """The jobs of an app under test.

    Every method has an app context of its own, so it sees what has been committed, and needs none
    around it.
    """

    def __init__(self, app: Flask) -> None:
        self._app = app
        self._litestack: Litestack = app.extensions[NAME]
        self._jobs = self._litestack.jobs

    def run(self, *, queue: str = "*", crons: bool = False, raise_errors: bool = True) -> list[Job]:
        """Run the jobs that are due on this thread, and those that they enqueue; return them.

        :param queue: only of this queue.
        :param crons: enqueue the tasks with ``cron=`` whose time has come since the last call.
        :param raise_errors: raise :class:`JobFailed` when a job does not succeed. Without it
            a job is retried as usual: run again after :meth:`Clock.advance`.
        """
        done: list[int] = []
        with self._claims() as (claims, runner):
            if crons:
                Timetable(self._jobs, self._jobs.schedules()).enqueue(claims, self._jobs.now())
            while True:
                claims.begin()
                claims.promote(self._jobs.now())
                taken = claims.take((queue,), 1, now=self._jobs.now())
                claims.commit()
                if not taken:
                    break
                (claim,) = taken
                outcome = runner.run(claim, CurrentJob(claim))
                if outcome is not None and not outcome.is_committed:
                    claims.finish([outcome])
                done.append(claim.id)
                if raise_errors and outcome is not None and outcome.failure is not None:
                    raise JobFailed(f"job {claim.id} {claim.task}:\n{outcome.failure.traceback}")
            return [job for job in map(self._jobs.get, dict.fromkeys(done)) if job is not None]

    def enqueued(self, task: Task[Any, Any] | None = None) -> list[Job]:
        """Return the jobs that wait, scheduled ones too, the first one first."""
        name = None if task is None else task.name
        with self._app.app_context():
            waiting = [
                *self._jobs.list(state="queued", task=name, limit=1_000_000),
                *self._jobs.list(state="scheduled", task=name, limit=1_000_000),
            ]
        return sorted(waiting, key=lambda job: job.id)

    def assert_enqueued(self, task: Task[Any, Any], *args: Any, **kwargs: Any) -> Job:
        """Return the job of this task, with these arguments if any are given; fail without one.

        Positional or by name, or left out because they are the default, is all the same.
        """
        found = self.enqueued(task)
        for job in found:
            if not (args or kwargs) or task.bind(job.args, job.kwargs) == task.bind(args, kwargs):
                return job
        others = [job.arguments for job in found] or [job.task for job in self.enqueued()]
        raise AssertionError(
            f"no job {task.name} {args or ''}{kwargs or ''} was enqueued; there are: {others}"
        )

    def assert_none_enqueued(self, task: Task[Any, Any] | None = None) -> None:
        """Fail if a job waits."""
        found = self.enqueued(task)
        assert not found, f"jobs were enqueued: {[(job.task, job.arguments) for job in found]}"

    @contextmanager
    def freeze(self, at: datetime | None = None) -> Iterator[Clock]:
        """Stop the clock that jobs go by, now or at a moment; it stays where you set it."""
        clock = Clock(time.time() if at is None else at.timestamp())
        before: Callable[[], float] = self._jobs.use_clock(clock)
        try:
            yield clock
        finally:
            self._jobs.use_clock(before)

    @contextmanager
    def _claims(self) -> Iterator[tuple[Claims, Runner]]:
        with self._app.app_context():
            settings = self._litestack.settings
            retention = Retention(settings.jobs_keep_succeeded or 60.0, settings.jobs_keep_failed)
            # A life, so that a worker that happens to run does not take our jobs for lost.
            life = Life(self._jobs.run_path, "test")
            connection = self._jobs.connect()
            try:
                yield (
                    Claims(connection, life.name, retention),
                    Runner(self._app, self._jobs, life.name, retention),
                )
            finally:
                connection.close()
                life.close()

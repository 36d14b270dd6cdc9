"""Enqueues the tasks with ``cron=`` when their time comes."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping

from .claims import Claims
from .cron import CLOCK_TOLERANCE, Schedule
from .queue import JobQueue

log = logging.getLogger("flask_litestack.jobs")


class Timetable:
    """The schedules of an app, in one worker. Any number of workers may have the same.

    Whoever moves the mark of a task on to a slot, in the transaction that stores the job, has
    enqueued that slot; the others find it moved.
    """

    def __init__(self, jobs: JobQueue, schedules: Mapping[str, Schedule]) -> None:
        self._jobs = jobs
        self._schedules = schedules
        self._next = dict.fromkeys(schedules, -math.inf)  # look at each of them at the start

    def next(self) -> float:
        """Return when to call :meth:`enqueue` again; infinity without schedules."""
        return min(self._next.values(), default=math.inf)

    def look_again(self) -> None:
        """Compute everything anew: the clock has been changed."""
        self._next = dict.fromkeys(self._schedules, -math.inf)

    def enqueue(self, claims: Claims, now: float) -> int:
        """Enqueue what is due, inside the caller's transaction; return how many jobs."""
        return sum(
            self._enqueue(claims, name, schedule, now)
            for name, schedule in self._schedules.items()
            if self._next[name] <= now
        )

    def _enqueue(self, claims: Claims, name: str, schedule: Schedule, now: float) -> int:
        text = f"{schedule.expression} {schedule.timezone}"
        done = claims.cron_slot(name, text)
        if done is None or done > now + CLOCK_TOLERANCE:
            claims.begin_schedule(name, text, now)
            done = now
        slot = schedule.due(done, now)
        self._next[name] = schedule.after(max(done, now))
        if slot is None or not claims.enqueue_slot(self._jobs.cron_job(name, now), slot):
            return 0
        log.info("cron: enqueued %s", name)
        return 1

"""``litestack.jobs``: declare tasks, enqueue jobs, and see to them."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, overload
from weakref import WeakSet

from ..config import Settings
from ..db import Database
from ..errors import ConfigError
from ..perapp import PerApp
from ..process.liveness import holder, living
from ..process.wakeup import wake
from ..sqlite.connection import Connection, connect
from . import board
from .claims import ANY_QUEUE
from .cron import Schedule
from .job import Attempt, Job, State, moment
from .retry import RetryPolicy
from .schema import SCHEMA
from .store import NewJob, Store
from .task import Call, Options, P, R, Task, Unique, check_priority, check_queue, declare

#: What workers listen to for jobs, and for everything else (cancel, pause, a new worker).
JOBS = "jobs"
CONTROL = "control"

#: The kind of life of a worker process.
WORKER = "worker"

#: Idle workers that one job wakes. Two, because one may be stopped or about to die.
WAKE = 2


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """A queue that has jobs waiting, or is paused."""

    name: str
    queued: int
    oldest: float
    """Seconds that the job waits that has been due for longest."""
    paused_at: datetime | None


@dataclass(frozen=True, slots=True)
class RunningJob:
    """A job that a worker runs right now."""

    id: int
    task: str
    seconds: float


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """A living worker process."""

    name: str
    pid: int
    queues: list[str]
    threads: int
    started_at: datetime | None
    running: list[RunningJob]

    def listens_to(self, queue: str) -> bool:
        """Tell whether it takes jobs from a queue."""
        return queue in self.queues or ANY_QUEUE in self.queues


@dataclass(frozen=True, slots=True)
class CronStatus:
    """A task with ``cron=``."""

    task: str
    cron: str
    timezone: str
    last: datetime | None
    next: datetime


class JobQueue:
    """``litestack.jobs``. Everything but :meth:`task` needs an app context.

    :param settings: returns the settings of the current app.
    :param database: the app's database, whose file holds the jobs.
    :param clock: returns seconds since the epoch.
    """

    def __init__(
        self,
        settings: Callable[[], Settings],
        database: Database,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._database = database
        self._clock = clock
        self._tasks: dict[str, Task[Any, Any]] = {}
        self._state = PerApp(lambda app: _State(self._settings().data_path / "run")).current

    # -- declare ------------------------------------------------------------------------------

    @overload
    def task(self, function: Callable[P, R], /) -> Task[P, R]: ...

    @overload
    def task(
        self,
        *,
        name: str | None = None,
        queue: str = "default",
        priority: int = 0,
        retries: int | RetryPolicy | None = 3,
        timeout: float | None = None,
        cron: str | None = None,
        timezone: str | None = None,
        unique: Unique = False,
    ) -> Callable[[Callable[P, R]], Task[P, R]]: ...

    def task(  # type: ignore[misc]  # mypy cannot match the ParamSpec of the second
        self,
        function: Any = None,
        /,
        *,
        name: str | None = None,
        queue: str = "default",
        priority: int = 0,
        retries: int | RetryPolicy | None = 3,
        timeout: float | None = None,
        cron: str | None = None,
        timezone: str | None = None,
        unique: Unique = False,
    ) -> Any:
        """Declare a function as a task. Also without parentheses.

        :param name: what its jobs are stored under; "module.function" by default. Keep it when
            you move the function while jobs of it are waiting.
        :param queue: where its jobs wait.
        :param priority: the higher, the sooner, within a queue.
        :param retries: how often a failed attempt is repeated, or a :class:`RetryPolicy`. None:
            until it succeeds.
        :param timeout: seconds after which :class:`JobTimeout` is raised in it.
        :param cron: when to enqueue it without arguments, e.g. "0 4 * * *".
        :param timezone: of ``cron``; by default ``LITESTACK_JOBS_TIMEZONE``.
        :param unique: "queued": not enqueued while an equal job waits. "queued or running": nor
            while one runs.
        :raises ConfigError: if a parameter makes no sense, or another task has the name.
        """

        def decorate(function: Callable[P, R]) -> Task[P, R]:
            declaration = declare(
                function,
                name=name,
                retries=retries,
                timeout=timeout,
                cron=cron,
                timezone=timezone,
                unique=unique,
            )
            options = Options(check_queue(queue), check_priority(priority))
            task = Task(function, self, declaration, options)
            return self._register(task)

        return decorate if function is None else decorate(function)

    @property
    def tasks(self) -> Mapping[str, Task[Any, Any]]:
        """The declared tasks by name."""
        return self._tasks

    def _register(self, task: Task[P, R]) -> Task[P, R]:
        other = self._tasks.get(task.name)
        # An app factory that runs twice declares the same function again.
        if other is not None and _place(other) != _place(task):
            raise ConfigError(
                f"two tasks are called {task.name}: {_place(other)} and {_place(task)}. Give one "
                "of them a name=."
            )
        self._tasks[task.name] = task
        return task

    # -- enqueue ------------------------------------------------------------------------------

    def enqueue(self, call: Call) -> Job:
        """Enqueue a prepared call; ``task.enqueue(...)`` is the shorter way."""
        new = _new_job(call, self._clock())
        state = self._state()
        found: int | Job
        # The context managers below say the same; this is the one place where they cost too much.
        joins = self._database.joins() or (
            call.options.after_commit and not self._database.is_over()
        )
        connection = self._joined(state) if joins else state.borrow(self)
        try:
            store = _Writer(connection, joins=joins)
            found = store.insert(new) if new.is_plain else store.insert_unique(new)
            if not isinstance(found, int):
                return found
            if joins:
                store.after_commit(partial(state.wake_for, new.state, found))
        finally:
            if not joins:
                state.give_back(connection)
        if not joins:
            state.wake_for(new.state, found)
        return Job(
            id=found,
            task=new.task,
            state=new.state,
            queue=new.queue,
            priority=new.priority,
            arguments=new.arguments,
            created_at=moment(new.created_at),  # type: ignore[arg-type]
            run_at=moment(new.run_at),  # type: ignore[arg-type]
            unique_key=new.unique_key,
        )

    def enqueue_many(self, calls: Iterable[Call]) -> int:
        """Enqueue many calls in one transaction: all of them, or none after an error.

        ``litestack.jobs.enqueue_many(send_mail.call(user_id) for user_id in ids)``. Return how
        many there are; those that an equal unique job kept out do not count.
        """
        now = self._clock()
        jobs = [_new_job(call, now) for call in calls]
        if not jobs:
            return 0
        scheduled = any(job.state == "scheduled" for job in jobs)
        with self._writing() as store:
            count = store.insert_many(jobs)
            state: State = "scheduled" if scheduled else "queued"
            store.after_commit(partial(self._state().wake_for, state))
        return count

    # -- see ----------------------------------------------------------------------------------

    def is_used(self) -> bool:
        """Tell whether there has ever been a job; creates nothing."""
        if self._database.why_no_file() or not self._database.path.exists():
            return False
        with closing(self._database.connect()) as connection:
            return SCHEMA.is_there(connection)

    def upgrade(self) -> None:
        """Bring the tables, if they are there, to the version of this release.

        :raises NewerStoreError: if a release that this one cannot follow has upgraded them.
        """
        if self.is_used():
            self.connect().close()

    def get(self, job_id: int) -> Job | None:
        """Return a job, or None if there is none with this id (any more)."""
        with self._reading() as store:
            return store.get(job_id)

    def attempts(self, job_id: int) -> Sequence[Attempt]:
        """Return what went wrong in each attempt at a job, the first one first."""
        with self._reading() as store:
            return store.attempts(job_id)

    def list(
        self,
        *,
        state: State | None = None,
        queue: str | None = None,
        task: str | None = None,
        before: int | None = None,
        limit: int = 50,
    ) -> Sequence[Job]:
        """Return jobs, the newest first; ``before`` is the last id of the page before."""
        with self._reading() as store:
            return store.select(state=state, queue=queue, task=task, before=before, limit=limit)

    def counts(self) -> dict[State, int]:
        """Return the number of jobs in each state."""
        with self._reading() as store:
            return store.counts()

    def queues(self) -> Sequence[QueueStatus]:
        """Return the queues that have jobs waiting, or are paused."""
        now = self._clock()
        with self._reading() as store:
            paused = store.paused()
            waiting = {name: (count, since) for name, count, since in store.waiting(now)}
        found = []
        for name in sorted({*waiting, *paused}):
            count, since = waiting.get(name, (0, now))
            paused_at = moment(paused.get(name))
            found.append(QueueStatus(name, count, max(0.0, now - since), paused_at))
        return found

    def workers(self) -> Sequence[WorkerStatus]:
        """Return the living worker processes and what they run right now."""
        run_path = self._state().run_path
        found = []
        for name in living(run_path, WORKER):
            pid, notes = holder(run_path, name), board.read(run_path, name)
            if pid is None or notes is None:
                continue
            found.append(
                WorkerStatus(
                    name,
                    pid,
                    notes.about.get("queues", []),
                    notes.about.get("threads", 0),
                    moment(notes.about.get("started_at")),
                    [self._running(entry) for entry in notes.entries],
                )
            )
        return found

    def crons(self) -> Sequence[CronStatus]:
        """Return the tasks with ``cron=`` and when they are due next."""
        with self._reading() as store:
            slots = store.cron_slots()
        now = self._clock()
        return [
            CronStatus(
                name,
                schedule.expression,
                schedule.timezone,
                moment(slots.get(name)),
                moment(schedule.after(now)),  # type: ignore[arg-type]
            )
            for name, schedule in self.schedules().items()
        ]

    def _running(self, entry: board.Entry) -> RunningJob:
        job = self.get(entry.job_id)
        seconds = max(0.0, self._clock() - entry.since)
        return RunningJob(entry.job_id, job.task if job else "?", seconds)

    # -- hold, stop, repeat -------------------------------------------------------------------

    def pause(self, queue: str) -> None:
        """Keep jobs of a queue from being started, until :meth:`resume`."""
        with self._writing() as store:
            store.pause(check_queue(queue), self._clock())
            store.after_commit(self._state().wake_all)

    def pause_all(self, file: Path) -> Sequence[str]:
        """Pause, in a copy of the database, every queue in which a job would start by itself.

        These are the queues that have jobs to run, now or later, and those of the tasks with
        ``cron=``: a worker enqueues the last slot that the copy knows nothing of.
        """
        with closing(connect(file)) as connection:
            SCHEMA.ensure(connection)
            store = Store(connection)
            crons = [self._tasks[name].options.queue for name in self.schedules()]
            queues = sorted({*store.unfinished_queues(), *crons})
            for queue in queues:
                store.pause(queue, self.now())
            connection.execute("PRAGMA journal_mode = DELETE")  # one file, without a log beside it
        return queues

    def resume(self, queue: str) -> bool:
        """Let the jobs of a queue be started again; tell whether it was paused."""
        with self._writing() as store:
            was_paused = store.resume(queue)
            store.after_commit(self._state().wake_all)
        return was_paused

    def cancel(self, job_id: int) -> Job:
        """Cancel a job that waits. A running one is told: see :meth:`CurrentJob.check`.

        :raises JobStateError: if there is no such job, or it has finished.
        """
        with self._writing() as store:
            keep = self._settings().jobs_keep_failed
            job = store.cancel(job_id, now=self._clock(), keep=keep)
            store.after_commit(self._state().wake_all)
        return job

    def retry(self, job_id: int) -> Job:
        """Queue a failed or cancelled job again, with all its retries.

        :raises JobStateError: if there is no such job, it has not failed, or an equal unique job
            waits.
        """
        with self._writing() as store:
            job = store.retry(job_id, now=self._clock())
            store.after_commit(partial(self._state().wake_for, job.state))
        return job

    def retry_failed(
        self, *, queue: str | None = None, task: str | None = None
    ) -> tuple[int, Sequence[int]]:
        """Queue all failed jobs again.

        Return how many, and the ids of those that an equal unique job keeps out.
        """
        with self._writing() as store:
            result = store.retry_failed(queue=queue, task=task, now=self._clock())
            store.after_commit(partial(self._state().wake_for, "queued"))
        return result

    def delete(self, job_id: int) -> None:
        """Delete a job and what is kept of its attempts.

        :raises JobStateError: if it is running, or there is no such job.
        """
        with self._writing() as store:
            store.delete(job_id)

    def prune(
        self,
        *,
        states: Sequence[State] = ("succeeded",),
        older_than: float = 0.0,
        queue: str | None = None,
        task: str | None = None,
    ) -> int:
        """Delete jobs that finished more than so many seconds ago; return how many."""
        before = self._clock() - older_than
        with self._writing() as store:
            return store.prune(states=states, finished_before=before, queue=queue, task=task)

    # -- for the worker and the tests ---------------------------------------------------------

    @property
    def run_path(self) -> Path:
        """The folder of the workers' sockets and locks."""
        return self._state().run_path

    @property
    def database(self) -> Database:
        """The database that holds the jobs."""
        return self._database

    def now(self) -> float:
        """Return the time, in seconds since the epoch."""
        return self._clock()

    def use_clock(self, clock: Callable[[], float]) -> Callable[[], float]:
        """Go by another clock; return the one before. For tests."""
        before, self._clock = self._clock, clock
        return before

    def connect(self) -> Connection:
        """Open a connection in autocommit mode, with the tables there. The caller closes it."""
        connection = self._database.connect()
        SCHEMA.ensure(connection)
        connection.isolation_level = None
        return connection

    def schedules(self) -> dict[str, Schedule]:
        """Return the schedules of the tasks with ``cron=``."""
        zone = self._settings().jobs_timezone
        return {
            name: Schedule(task.declaration.cron, task.declaration.timezone or zone)
            for name, task in self._tasks.items()
            if task.declaration.cron is not None
        }

    def cron_job(self, name: str, now: float) -> NewJob:
        """Return the job of a slot in a task's schedule."""
        return _new_job(self._tasks[name].call(), now)

    # -- connections --------------------------------------------------------------------------

    @contextmanager
    def _writing(self) -> Iterator[_Writer]:
        """Yield a store on the session's connection if it has something to join, else on ours."""
        state = self._state()
        if self._database.joins():
            yield _Writer(self._joined(state), joins=True)
            return
        connection = state.borrow(self)
        try:
            yield _Writer(connection)
        finally:
            state.give_back(connection)

    @contextmanager
    def _reading(self) -> Iterator[Store]:
        with self._writing() as store:
            yield store

    def _joined(self, state: _State) -> Connection:
        connection = self._database.session_connection()
        if not state.is_ready:
            # Part of the session's transaction, so that the next one looks again.
            SCHEMA.ensure(connection, joins=True)
        return connection


class _Writer(Store):
    """A store that knows when what it wrote is committed."""

    __slots__ = ()

    def after_commit(self, function: Callable[[], object]) -> None:
        """Call a function when what was written is committed: now, unless it joined something."""
        if self._joins:
            self._connection.after_commit(function)
        else:
            function()


class _State:
    """What belongs to one app in this process: a few idle connections."""

    def __init__(self, run_path: Path) -> None:
        self.run_path = run_path
        self.is_ready = False
        self._idle: deque[Connection] = deque(maxlen=16)
        _states.add(self)

    def forget(self) -> None:
        """After a fork: the connections are the parent's."""
        self._idle.clear()

    def borrow(self, jobs: JobQueue) -> Connection:
        """Return a connection that nobody else uses."""
        while self._idle:
            try:
                return self._idle.pop()
            except IndexError:  # another thread was quicker
                break
        connection = jobs.connect()
        self.is_ready = True
        return connection

    def give_back(self, connection: Connection) -> None:
        """Keep a connection for the next caller."""
        if connection.in_transaction:
            connection.rollback()
        if len(self._idle) < (self._idle.maxlen or 0):
            self._idle.append(connection)
        else:
            connection.close()

    def wake_for(self, state: State, job_id: int = 0) -> None:
        """Have workers look, for a job in this state; which one, if it is only one."""
        if state == "scheduled":  # every worker's timer may have to be set anew
            wake(self.run_path, JOBS)
        else:
            wake(self.run_path, JOBS, limit=WAKE, note=hint(job_id))

    def wake_all(self) -> None:
        """Have every worker look again."""
        wake(self.run_path, CONTROL)
        wake(self.run_path, JOBS)


def hint(job_id: int) -> bytes:
    """Write down for a worker which job it is woken for; 0: any."""
    return b"\0%d" % job_id


def read_hint(note: bytes) -> int:
    """Return which job a worker is woken for; 0: any, or a note of another release."""
    return int(note[1:]) if note[:1] == b"\0" and note[1:].isdigit() else 0


_states: WeakSet[_State] = WeakSet()


def _after_fork_in_child() -> None:
    for state in list(_states):
        state.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def _place(task: Task[Any, Any]) -> str:
    code = getattr(task.function, "__code__", None)
    where = f"{code.co_filename}:{code.co_firstlineno}" if code else task.function.__module__
    return f"{task.function.__qualname__} at {where}"


def _new_job(call: Call, now: float) -> NewJob:
    declaration, options = call.declaration, call.options
    run_at = now if options.run_after is None else _run_at(options.run_after, now)
    unique_key = None if call.key is None else f"{declaration.name}:{call.key}"
    return NewJob(
        "scheduled" if run_at > now else "queued",
        options.queue,
        options.priority,
        declaration.name,
        call.arguments,
        now,
        run_at,
        options.retries,
        unique_key,
        declaration.unique == "queued or running",
    )


def _run_at(run_after: datetime | float, now: float) -> float:
    return run_after.timestamp() if isinstance(run_after, datetime) else now + run_after

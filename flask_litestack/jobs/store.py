"""The app's side of the tables: put jobs in, look at them, hold and stop them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from ..errors import JobStateError
from ..sqlite import driver
from ..sqlite.connection import Connection
from .job import FINISHED, STATES, Attempt, Job, State, moment

_COLUMNS = (
    "id, task, state, queue, priority, arguments, created_at, run_at, started_at, finished_at, "
    "failures, crashes, worker, unique_key, cancel_requested"
)

_INSERT = (
    "INSERT INTO litestack_jobs (state, queue, priority, task, arguments, created_at, run_at) "
    "VALUES (?, ?, ?, ?, ?, ?, ?)"
)
_INSERT_FULL = (
    "INSERT INTO litestack_jobs (state, queue, priority, task, arguments, created_at, run_at, "
    "retries, unique_key, exclusive) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
)

_COUNTED: dict[State, str] = {
    "scheduled": "state = 'scheduled'",
    "queued": "state = 'queued'",
    "running": "state = 'running'",
    "succeeded": "expires_at IS NOT NULL AND state = 'succeeded'",
    "failed": "state IN ('failed', 'cancelled') AND state = 'failed'",
    "cancelled": "state IN ('failed', 'cancelled') AND state = 'cancelled'",
}
_COUNTS = "SELECT " + ", ".join(
    f"(SELECT COUNT(*) FROM litestack_jobs WHERE {_COUNTED[state]})" for state in STATES
)

#: The columns of a job that every job has.
_PLAIN = 7

#: Rows that one statement of a long run of them changes: the lock is free in between.
_STEP = 500


class NewJob(NamedTuple):
    """A row to be inserted."""

    state: State
    queue: str
    priority: int
    task: str
    arguments: str
    created_at: float
    run_at: float
    retries: int | None = None
    unique_key: str | None = None
    exclusive: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether it is one that cannot conflict with another, nor has limits of its own."""
        return self.unique_key is None and self.retries is None


class Store:
    """The statements, on one connection.

    :param joins: what is written belongs to a transaction that the owner of the connection
        commits, and begins it. Otherwise each method commits.
    """

    __slots__ = ("_connection", "_joins")

    def __init__(self, connection: Connection, *, joins: bool = False) -> None:
        self._connection = connection
        self._joins = joins

    # -- enqueue ------------------------------------------------------------------------------

    def insert(self, job: NewJob) -> int:
        """Insert a job that cannot conflict; return its id."""
        cursor = self._connection.cursor()
        cursor.execute(_INSERT, job[:_PLAIN])
        return cursor.lastrowid or 0

    def insert_unique(self, job: NewJob) -> int | Job:
        """Insert a job; return its id, or the job that is in its way."""
        while True:
            cursor = self._connection.execute(_INSERT_FULL, job)
            if cursor.rowcount == 1:
                return cursor.lastrowid or 0
            if (found := self._conflicting(job)) is not None:
                return found
            # Outside a transaction the one in its way may have ended in between.

    def insert_many(self, jobs: Sequence[NewJob]) -> int:
        """Insert jobs, all or none; return how many were not kept out by an equal unique job."""
        with self._transaction():
            before = self._connection.total_changes
            plain = [job[:_PLAIN] for job in jobs if job.is_plain]
            if plain:
                self._connection.executemany(_INSERT, plain)
            if len(plain) < len(jobs):
                full = [job for job in jobs if not job.is_plain]
                self._connection.executemany(_INSERT_FULL, full)
            return self._connection.total_changes - before

    def _conflicting(self, job: NewJob) -> Job | None:
        row = self._connection.execute(
            f"SELECT {_COLUMNS} FROM litestack_jobs WHERE unique_key = ? AND ("
            "state IN ('scheduled', 'queued') OR (exclusive = 1 AND state = 'running')) "
            "ORDER BY state = 'running' LIMIT 1",
            (job.unique_key,),
        ).fetchone()
        return _job(row, new=False) if row else None

    # -- look ---------------------------------------------------------------------------------

    def get(self, job_id: int) -> Job | None:
        """Return a job, or None."""
        row = self._connection.execute(
            f"SELECT {_COLUMNS} FROM litestack_jobs WHERE id = ?", (job_id,)
        ).fetchone()
        return _job(row) if row else None

    def attempts(self, job_id: int) -> list[Attempt]:
        """Return the attempts of a job that did not succeed, the first one first."""
        rows = self._connection.execute(
            "SELECT at, error, traceback, worker FROM litestack_job_errors WHERE job_id = ? "
            "ORDER BY id",
            (job_id,),
        ).fetchall()
        return [
            Attempt(number, moment(at), error, traceback, worker)  # type: ignore[arg-type]
            for number, (at, error, traceback, worker) in enumerate(rows, 1)
        ]

    def select(
        self,
        *,
        state: str | None = None,
        queue: str | None = None,
        task: str | None = None,
        before: int | None = None,
        limit: int = 50,
    ) -> list[Job]:
        """Return jobs, the newest first."""
        where, values = _where(state=state, queue=queue, task=task)
        if before is not None:
            where += " AND id < ?"
            values.append(before)
        rows = self._connection.execute(
            f"SELECT {_COLUMNS} FROM litestack_jobs WHERE {where} ORDER BY id DESC LIMIT ?",
            (*values, limit),
        ).fetchall()
        return [_job(row) for row in rows]

    def counts(self) -> dict[State, int]:
        """Return the number of jobs in each state at one moment, from the indexes alone."""
        row = self._connection.execute(_COUNTS).fetchone()
        return dict(zip(STATES, row, strict=True))

    def waiting(self, now: float) -> list[tuple[str, int, float]]:
        """Return each queue with jobs that are due: its name, how many, since when the oldest."""
        return self._connection.execute(
            "SELECT queue, COUNT(*), MIN(run_at) FROM ("
            "SELECT queue, run_at FROM litestack_jobs WHERE state = 'queued' UNION ALL "
            # Only a worker moves those that have come due to the others.
            "SELECT queue, run_at FROM litestack_jobs WHERE state = 'scheduled' AND run_at <= ?) "
            "GROUP BY queue ORDER BY queue",
            (now,),
        ).fetchall()

    def cron_slots(self) -> dict[str, float]:
        """Return for each task with a cron schedule the last slot that was enqueued."""
        return dict(self._connection.execute("SELECT task, slot FROM litestack_job_crons"))

    # -- hold and stop ------------------------------------------------------------------------

    def pause(self, queue: str, now: float) -> None:
        """Keep the jobs of a queue from being started."""
        with self._transaction():
            self._connection.execute(
                "INSERT INTO litestack_job_pauses (queue, paused_at) VALUES (?, ?) "
                "ON CONFLICT DO NOTHING",
                (queue, now),
            )

    def resume(self, queue: str) -> bool:
        """Let the jobs of a queue be started again; tell whether it was paused."""
        with self._transaction():
            cursor = self._connection.execute(
                "DELETE FROM litestack_job_pauses WHERE queue = ?", (queue,)
            )
        return cursor.rowcount == 1

    def unfinished_queues(self) -> list[str]:
        """Return the queues that have jobs to run, now or later."""
        rows = self._connection.execute(
            "SELECT queue FROM litestack_jobs WHERE state = 'queued' "
            "UNION SELECT queue FROM litestack_jobs WHERE state = 'scheduled' "
            "UNION SELECT queue FROM litestack_jobs WHERE state = 'running' ORDER BY queue"
        )
        return [queue for (queue,) in rows]

    def paused(self) -> dict[str, float]:
        """Return the paused queues, and since when."""
        return dict(self._connection.execute("SELECT queue, paused_at FROM litestack_job_pauses"))

    def cancel(self, job_id: int, *, now: float, keep: float) -> Job:
        """Cancel a job that waits, or ask a running one to stop; return it.

        :raises JobStateError: if there is no such job, or it has finished.
        """
        with self._transaction():
            job = self._existing(job_id)
            if job.state == "running":
                self._connection.execute(
                    "UPDATE litestack_jobs SET cancel_requested = 1 WHERE id = ?", (job_id,)
                )
            elif job.state in FINISHED:
                raise JobStateError(f"job {job_id} has {job.state}; there is nothing to cancel.")
            else:
                self._connection.execute(
                    "UPDATE litestack_jobs SET state = 'cancelled', finished_at = ?, "
                    "expires_at = ? WHERE id = ?",
                    (now, now + keep, job_id),
                )
            return self._existing(job_id)

    def retry(self, job_id: int, *, now: float) -> Job:
        """Queue a failed or cancelled job again, with all its retries; return it.

        :raises JobStateError: if there is no such job, it has neither failed nor been cancelled,
            or an equal unique job is in its way.
        """
        with self._transaction():
            job = self._existing(job_id)
            if job.state not in ("failed", "cancelled"):
                raise JobStateError(
                    f"job {job_id} is {job.state}; only a failed or cancelled job can be retried."
                )
            if not self._requeue(job_id, now):
                raise JobStateError(
                    f"job {job_id} cannot be retried: another job with the unique key "
                    f"{job.unique_key!r} is waiting or running."
                )
            return self._existing(job_id)

    def retry_failed(
        self, *, queue: str | None, task: str | None, now: float
    ) -> tuple[int, list[int]]:
        """Queue all failed jobs again; return how many, and the ids of those with a conflict."""
        where, values = _where(state="failed", queue=queue, task=task)
        retried, conflicts, last = 0, [], 0
        while True:
            with self._transaction():
                ids = [
                    row[0]
                    for row in self._connection.execute(
                        f"SELECT id FROM litestack_jobs WHERE {where} AND id > ? "
                        "ORDER BY id LIMIT ?",
                        (*values, last, _STEP),
                    )
                ]
                for job_id in ids:
                    if self._requeue(job_id, now):
                        retried += 1
                    else:
                        conflicts.append(job_id)
            if len(ids) < _STEP:
                return retried, conflicts
            last = ids[-1]

    def delete(self, job_id: int) -> None:
        """Delete a job that is not running.

        :raises JobStateError: if it is running, or there is no such job.
        """
        with self._transaction():
            if self._existing(job_id).state == "running":
                raise JobStateError(f"job {job_id} is running; cancel it first.")
            self._delete([job_id])

    def prune(
        self, *, states: Sequence[str], finished_before: float, queue: str | None, task: str | None
    ) -> int:
        """Delete jobs that finished before a moment, some at a time; return how many."""
        where, values = _where(queue=queue, task=task)
        marks = ", ".join("?" * len(states))
        deleted = last = 0
        while True:
            with self._transaction():
                ids = [
                    row[0]
                    for row in self._connection.execute(
                        f"SELECT id FROM litestack_jobs WHERE {where} AND state IN ({marks}) "
                        "AND finished_at <= ? AND id > ? ORDER BY id LIMIT ?",
                        (*values, *states, finished_before, last, _STEP),
                    )
                ]
                self._delete(ids)
            deleted += len(ids)
            if len(ids) < _STEP:
                return deleted
            last = ids[-1]

    def _existing(self, job_id: int) -> Job:
        job = self.get(job_id)
        if job is None:
            raise JobStateError(f"there is no job {job_id}.")
        return job

    def _requeue(self, job_id: int, now: float) -> bool:
        try:
            self._connection.execute(
                "UPDATE litestack_jobs SET state = 'queued', run_at = ?, started_at = NULL, "
                "finished_at = NULL, expires_at = NULL, failures = 0, crashes = 0, postponed = 0, "
                "cancel_requested = 0 WHERE id = ?",
                (now, job_id),
            )
        except driver.IntegrityError:
            return False
        return True

    def _delete(self, ids: Sequence[int]) -> None:
        text = json.dumps(ids)
        self._connection.execute(
            "DELETE FROM litestack_job_errors WHERE job_id IN (SELECT value FROM json_each(?))",
            (text,),
        )
        self._connection.execute(
            "DELETE FROM litestack_jobs WHERE id IN (SELECT value FROM json_each(?))", (text,)
        )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All or nothing: a transaction, or a savepoint of the one that it joins."""
        connection = self._connection
        if not self._joins:
            connection.begin_immediate()
            try:
                yield
                connection.commit()
            except BaseException:
                connection.rollback()
                raise
            return
        connection.execute("SAVEPOINT litestack_jobs")
        try:
            yield
        except BaseException:
            if connection.in_transaction:  # unless SQLite has rolled all of it back, on a full disk
                connection.execute("ROLLBACK TO litestack_jobs")
                connection.execute("RELEASE litestack_jobs")
            raise
        connection.execute("RELEASE litestack_jobs")


def _where(**conditions: str | None) -> tuple[str, list[Any]]:
    given = {column: value for column, value in conditions.items() if value is not None}
    return " AND ".join(["1", *(f"{column} = ?" for column in given)]), list(given.values())


def _job(row: tuple[Any, ...], *, new: bool = True) -> Job:
    (id_, task, state, queue, priority, arguments, created_at, run_at, started_at, finished_at) = (
        row[:10]
    )
    failures, crashes, worker, unique_key, cancel_requested = row[10:]
    return Job(
        id=id_,
        task=task,
        state=state,
        queue=queue,
        priority=priority,
        arguments=arguments,
        created_at=moment(created_at),  # type: ignore[arg-type]
        run_at=moment(run_at),  # type: ignore[arg-type]
        started_at=moment(started_at),
        finished_at=moment(finished_at),
        failures=failures,
        crashes=crashes,
        worker=worker,
        unique_key=unique_key,
        cancel_requested=bool(cancel_requested),
        new=new,
    )

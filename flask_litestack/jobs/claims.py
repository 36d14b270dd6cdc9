"""The worker's side of the tables: take jobs, give them back, end them.

A claim is fenced: each time a job is taken its ``claim`` number grows, and who ends it must name
that number. A worker that was taken for lost, or a thread that overran its timeout, can therefore
not end a job that somebody else has meanwhile.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from ..sqlite import driver
from ..sqlite.connection import Connection
from .job import FINISHED, State
from .store import NewJob, Store

#: A job that was running in this many worker processes when they died has failed.
MAX_CRASHES = 3

#: Scheduled jobs that one transaction makes ready.
PROMOTE_STEP = 300

#: Expired jobs that one transaction deletes.
PRUNE_STEP = 500

#: The longest traceback that is kept, in characters; of a longer one the end is.
MAX_TRACEBACK = 20_000

ANY_QUEUE = "*"

#: The queues that have jobs ready: one seek for each, however long they are.
_QUEUES = (
    "WITH RECURSIVE q (name) AS ("
    "SELECT MIN(queue) FROM litestack_jobs WHERE state = 'queued' UNION ALL "
    "SELECT (SELECT MIN(queue) FROM litestack_jobs WHERE state = 'queued' AND queue > q.name) "
    "FROM q WHERE q.name IS NOT NULL) "
)
_COLUMNS = (
    "job.id, job.priority, job.queue, job.task, job.arguments, job.claim + 1, job.run_at, "
    "job.retries, job.failures, job.crashes, job.postponed"
)
#: What a :class:`Claim` is made of, of a job that is claimed.
_ROW = "id, priority, queue, task, arguments, claim, run_at, retries, failures, crashes, postponed"
_UNPAUSED = "NOT EXISTS (SELECT 1 FROM litestack_job_pauses WHERE queue = "
_CANDIDATES = {
    suspects: (
        f"SELECT {_COLUMNS} FROM litestack_jobs AS job WHERE state = 'queued' AND queue = ?1 "
        f"AND {_UNPAUSED} ?1) {'' if suspects else 'AND crashes = 0 '}"
        "ORDER BY priority DESC, id LIMIT ?2"
    )
    for suspects in (True, False)
}
_CANDIDATES_OF_ALL = {
    suspects: (
        f"{_QUEUES} SELECT {_COLUMNS} FROM q CROSS JOIN litestack_jobs AS job "
        f"WHERE q.name IS NOT NULL AND {_UNPAUSED} q.name) AND job.id IN ("
        "SELECT id FROM litestack_jobs WHERE state = 'queued' AND queue = q.name "
        f"{'' if suspects else 'AND crashes = 0 '}ORDER BY priority DESC, id LIMIT ?1) "
        "ORDER BY job.priority DESC, job.id LIMIT ?1"
    )
    for suspects in (True, False)
}
#: The same while all jobs are of one queue, which a last column tells: in a quarter of the time.
_CANDIDATES_OF_FIRST = {
    suspects: (
        f"SELECT {_COLUMNS}, (SELECT MAX(queue) FROM litestack_jobs WHERE state = 'queued') "
        "FROM litestack_jobs AS job WHERE state = 'queued' "
        "AND queue = (SELECT MIN(queue) FROM litestack_jobs WHERE state = 'queued') "
        f"AND {_UNPAUSED} job.queue) {'' if suspects else 'AND crashes = 0 '}"
        "ORDER BY priority DESC, id LIMIT ?1"
    )
    for suspects in (True, False)
}
_TAKE = (
    "UPDATE litestack_jobs SET state = 'running', claim = claim + 1, worker = ?, started_at = ?, "
    "finished_at = NULL WHERE id "
)

#: One that is the next of its queue and no suspect, while no other queue has a job that may be
#: more urgent: of all queues, or of certain ones, the last parameter.
_NO_OTHER_QUEUE = {
    True: (
        "AND queue = (SELECT MIN(queue) FROM litestack_jobs WHERE state = 'queued') "
        "AND queue = (SELECT MAX(queue) FROM litestack_jobs WHERE state = 'queued') "
    ),
    False: (
        "AND queue IN (SELECT value FROM json_each(?4)) AND NOT EXISTS ("
        "SELECT 1 FROM json_each(?4) AS name CROSS JOIN litestack_jobs AS other "
        "WHERE name.value <> litestack_jobs.queue "
        "AND other.queue = name.value AND other.state = 'queued') "
    ),
}
_TAKE_ONE = {
    of_any: (
        f"{_TAKE} = ? AND state = 'queued' AND crashes = 0 "
        f"AND {_UNPAUSED} litestack_jobs.queue) {no_other}"
        "AND id = (SELECT id FROM litestack_jobs AS other WHERE other.state = 'queued' "
        "AND other.queue = litestack_jobs.queue ORDER BY priority DESC, id LIMIT 1) "
        f"RETURNING {_ROW}"
    )
    for of_any, no_other in _NO_OTHER_QUEUE.items()
}

#: One job, as long as the claim is in force.
_OURS = "WHERE id = ? AND claim = ? AND state = 'running'"


class Claim(NamedTuple):
    """A job that this worker has."""

    id: int
    priority: int
    queue: str
    task: str
    arguments: str
    number: int
    run_at: float
    retries: int | None
    failures: int
    crashes: int
    postponed: int

    @property
    def attempt(self) -> int:
        """The number of this attempt, from 1 on."""
        return self.failures + self.crashes + 1


@dataclass(frozen=True, slots=True)
class Failure:
    """What went wrong in an attempt."""

    error: str
    traceback: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended: the state of the job from here on."""

    claim: Claim
    state: State
    started_at: float
    finished_at: float
    run_at: float
    failures: int
    postponed: int = 0
    failure: Failure | None = None
    is_committed: bool = False
    """Whether the session of the job has stored it already, with the task's own writes."""


@dataclass(frozen=True, slots=True)
class Retention:
    """Seconds that finished jobs are kept."""

    succeeded: float
    failed: float

    def of(self, state: State) -> float:
        """Return how long a job is kept that ends in this state."""
        return self.succeeded if state == "succeeded" else self.failed


class Claims:
    """The statements, on a connection in autocommit mode that the worker has for itself."""

    def __init__(self, connection: Connection, worker: str, retention: Retention) -> None:
        self._connection = connection
        self._worker = worker
        self._retention = retention

    def begin(self) -> None:
        """Take the write lock for what follows."""
        self._connection.begin_immediate()

    def commit(self) -> None:
        """Commit it all."""
        self._connection.commit()

    def rollback(self) -> None:
        """Undo what was not committed; safe at any time."""
        self._connection.rollback()

    # -- what is there to do ------------------------------------------------------------------

    def has_queued(self, queues: Sequence[str]) -> bool:
        """Tell whether a claim from these queues would find something."""
        return any(self._candidates(queue, 1, suspects=True) for queue in self._expand(queues))

    def next_due(self) -> float | None:
        """Return when the next scheduled job is due."""
        due: float | None = self._connection.execute(
            "SELECT MIN(run_at) FROM litestack_jobs WHERE state = 'scheduled'"
        ).fetchone()[0]
        return due

    def promote(self, now: float) -> int:
        """Queue scheduled jobs that are due, a few hundred at most; return how many."""
        return self._connection.execute(
            "UPDATE litestack_jobs SET state = 'queued' WHERE id IN ("
            "SELECT id FROM litestack_jobs WHERE state = 'scheduled' AND run_at <= ? "
            "ORDER BY run_at LIMIT ?)",
            (now, PROMOTE_STEP),
        ).rowcount

    # -- take and give back -------------------------------------------------------------------

    def take(
        self, queues: Sequence[str], limit: int, *, now: float, suspects: bool = True
    ) -> list[Claim]:
        """Claim up to ``limit`` jobs: queue after queue, by priority, first come first served.

        :param queues: names; ``*`` stands for all others, which count as one.
        :param suspects: take a job that was running when a worker died, one at most. Two of them
            side by side could not be told apart at the next death.
        """
        groups = self._candidates_by_group(queues, limit, suspects)
        if sum(bool(claim.crashes) for group in groups for claim in group) > 1:
            groups = self._with_one_suspect(groups, queues, limit)
        claims = [claim for group in groups for claim in group][:limit]
        if len(claims) == 1:
            self._connection.execute(f"{_TAKE} = ?", (self._worker, now, claims[0].id))
        elif claims:
            self._connection.execute(
                f"{_TAKE} IN (SELECT value FROM json_each(?))", (self._worker, now, _ids(claims))
            )
        return claims

    def take_one(self, job_id: int, queues: Sequence[str], *, now: float) -> Claim | None:
        """Claim a certain job, in a transaction of its own; None if it is not to be had.

        Nor if another one may come first, or if it was running when a worker died: :meth:`take`
        sees to those.
        """
        of_any = ANY_QUEUE in queues
        named = () if of_any else (json.dumps(queues),)
        row = self._connection.execute(
            _TAKE_ONE[of_any], (self._worker, now, job_id, *named)
        ).fetchone()
        return Claim._make(row) if row else None

    def mine(self) -> list[Claim]:
        """Return all jobs that are in this worker's name."""
        rows = self._connection.execute(
            f"SELECT {_ROW} FROM litestack_jobs WHERE state = 'running' AND worker = ?",
            (self._worker,),
        )
        return [Claim._make(row) for row in rows]

    def give_back(self, claims: Collection[Claim], now: float) -> None:
        """Queue jobs again that were claimed but have not ended; they keep their place.

        One that somebody wants cancelled is.
        """
        for claim in claims:
            if self._is_unwanted(claim):
                self._cancel(claim, now)
            else:
                self._change(claim, "state = 'queued', worker = NULL, started_at = NULL", (), now)

    def cancel_requests(self) -> set[int]:
        """Return the jobs of this worker that somebody wants cancelled."""
        return {
            row[0]
            for row in self._connection.execute(
                "SELECT id FROM litestack_jobs WHERE state = 'running' AND worker = ? "
                "AND cancel_requested = 1",
                (self._worker,),
            )
        }

    # -- end ----------------------------------------------------------------------------------

    def finish(self, outcomes: Iterable[Outcome]) -> list[Outcome]:
        """Store how attempts ended; return those whose claim is not ours any more."""
        succeeded, lost = [], []
        for outcome in outcomes:
            if outcome.state == "succeeded":
                succeeded.append(outcome)
            elif not self._finish_other(outcome):
                lost.append(outcome)
        if succeeded:
            lost += self._succeed(succeeded)
        return lost

    @staticmethod
    def finish_with(connection: Connection, outcome: Outcome, retention: Retention) -> bool:
        """Store a success in the transaction of the job itself; tell whether it is still ours."""
        key = (outcome.claim.id, outcome.claim.number)
        if retention.succeeded <= 0:
            sql = "DELETE FROM litestack_jobs WHERE id = ? AND claim = ? AND state = 'running'"
            return connection.execute(sql, key).rowcount == 1
        return (
            connection.execute(
                "UPDATE litestack_jobs SET state = 'succeeded', worker = NULL, started_at = ?, "
                "finished_at = ?, expires_at = ? WHERE id = ? AND claim = ? AND state = 'running'",
                (
                    outcome.started_at,
                    outcome.finished_at,
                    outcome.finished_at + retention.succeeded,
                    *key,
                ),
            ).rowcount
            == 1
        )

    def _succeed(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        # One statement for all: each step of a statement hands the interpreter over to the
        # threads that run jobs, and getting it back may take milliseconds.
        rows = [(o.claim.id, o.claim.number, o.started_at, o.finished_at) for o in outcomes]
        ended = "WHERE litestack_jobs.id = ended.value ->> 0 AND claim = ended.value ->> 1 "
        if self._retention.succeeded <= 0:
            done = self._connection.execute(
                "DELETE FROM litestack_jobs WHERE state = 'running' AND (id, claim) IN ("
                "SELECT value ->> 0, value ->> 1 FROM json_each(?))",
                (json.dumps(rows),),
            ).rowcount
        else:
            done = self._connection.execute(
                "UPDATE litestack_jobs SET state = 'succeeded', worker = NULL, "
                "started_at = ended.value ->> 2, finished_at = ended.value ->> 3, "
                "expires_at = (ended.value ->> 3) + ? "
                f"FROM json_each(?) AS ended {ended} AND state = 'running'",
                (self._retention.succeeded, json.dumps(rows)),
            ).rowcount
        if done == len(outcomes):
            return []
        return [outcome for outcome in outcomes if not self._has_succeeded(outcome)]

    def _has_succeeded(self, outcome: Outcome) -> bool:
        row = self._connection.execute(
            "SELECT state, claim FROM litestack_jobs WHERE id = ?", (outcome.claim.id,)
        ).fetchone()
        return row is None or row == ("succeeded", outcome.claim.number)

    def _finish_other(self, outcome: Outcome) -> bool:
        if outcome.state not in FINISHED and self._is_unwanted(outcome.claim):
            outcome = replace(outcome, state="cancelled", run_at=outcome.finished_at)
        state = outcome.state
        is_end = state in FINISHED
        stored = self._change(
            outcome.claim,
            "state = ?, worker = NULL, run_at = ?, started_at = ?, finished_at = ?, "
            "expires_at = ?, failures = ?, postponed = ?",
            (
                state,
                outcome.run_at,
                outcome.started_at,
                outcome.finished_at if is_end else None,
                outcome.finished_at + self._retention.of(state) if is_end else None,
                outcome.failures,
                outcome.postponed,
            ),
            outcome.finished_at,
        )
        if stored and outcome.failure is not None:
            self._note(outcome.claim.id, outcome.finished_at, outcome.failure, self._worker)
        return stored

    def _change(self, claim: Claim, changes: str, values: tuple[Any, ...], now: float) -> bool:
        """Change a job of ours; tell whether it still was."""
        try:
            cursor = self._connection.execute(
                f"UPDATE litestack_jobs SET {changes} {_OURS}", (*values, claim.id, claim.number)
            )
        except driver.IntegrityError as error:
            if "UNIQUE" not in str(error):
                raise
            # It is unique while it waits, and an equal one was enqueued while it ran.
            cancelled = self._cancel(claim, now)
            self._note(claim.id, now, SUPERSEDED, self._worker)
            return cancelled
        return cursor.rowcount == 1

    def _cancel(self, claim: Claim, now: float) -> bool:
        """End a job of ours as cancelled; tell whether it still was."""
        cursor = self._connection.execute(
            "UPDATE litestack_jobs SET state = 'cancelled', worker = NULL, finished_at = ?, "
            f"expires_at = ? {_OURS}",
            (now, now + self._retention.of("cancelled"), claim.id, claim.number),
        )
        return cursor.rowcount == 1

    def _is_unwanted(self, claim: Claim) -> bool:
        """Whether somebody wants a job of ours cancelled: it must not run again."""
        row = self._connection.execute(
            f"SELECT cancel_requested FROM litestack_jobs {_OURS}", (claim.id, claim.number)
        ).fetchone()
        return bool(row and row[0])

    def _note(self, job_id: int, at: float, failure: Failure, worker: str) -> None:
        self._connection.execute(
            "INSERT INTO litestack_job_errors (job_id, at, error, traceback, worker) "
            "VALUES (?, ?, ?, ?, ?)",
            (job_id, at, failure.error, failure.traceback[-MAX_TRACEBACK:], worker),
        )

    # -- the jobs of dead workers -------------------------------------------------------------

    def workers(self) -> list[str]:
        """Return the workers that have jobs, dead ones among them."""
        return [
            row[0]
            for row in self._connection.execute(
                "SELECT DISTINCT worker FROM litestack_jobs WHERE state = 'running'"
            )
        ]

    def recover(
        self, worker: str, *, started: Collection[int] | None, overran: Collection[int], now: float
    ) -> list[tuple[int, State]]:
        """Queue the jobs of a dead worker again; return each with its new state.

        :param started: those that had been started, which count a crash. None: not known, all.
        :param overran: those that the worker was ended for, because they did not stop.
        """
        rows = self._connection.execute(
            f"SELECT {_ROW}, cancel_requested FROM litestack_jobs "
            "WHERE state = 'running' AND worker = ? ORDER BY id",
            (worker,),
        ).fetchall()
        found: list[tuple[int, State]] = []
        for *columns, cancel_requested in rows:
            claim = Claim(*columns)
            crashed = started is None or claim.id in started
            crashes = claim.crashes + crashed
            state: State = "queued"
            if cancel_requested:
                state = "cancelled"
            elif claim.id in overran or crashes >= MAX_CRASHES:
                state = "failed"
            is_end = state in FINISHED
            self._change(
                claim,
                "state = ?, worker = NULL, crashes = ?, finished_at = ?, expires_at = ?",
                (
                    state,
                    crashes,
                    now if is_end else None,
                    now + self._retention.of(state) if is_end else None,
                ),
                now,
            )
            if crashed:
                failure = OVERRAN if claim.id in overran else _killed(crashes)
                self._note(claim.id, now, failure, worker)
            found.append((claim.id, state))
        return found

    # -- by the clock -------------------------------------------------------------------------

    def cron_slot(self, task: str, schedule: str) -> float | None:
        """Return the last slot of a task that was enqueued; None if the schedule is a new one."""
        row = self._connection.execute(
            "SELECT slot FROM litestack_job_crons WHERE task = ? AND schedule = ?",
            (task, schedule),
        ).fetchone()
        return row[0] if row else None

    def begin_schedule(self, task: str, schedule: str, slot: float) -> None:
        """Note a new or changed schedule; nothing before ``slot`` will be made up for."""
        self._connection.execute(
            "INSERT INTO litestack_job_crons (task, schedule, slot) VALUES (?, ?, ?) "
            "ON CONFLICT (task) DO UPDATE SET schedule = excluded.schedule, slot = excluded.slot "
            "WHERE schedule <> excluded.schedule OR slot > excluded.slot",
            (task, schedule, slot),
        )

    def enqueue_slot(self, job: NewJob, slot: float) -> bool:
        """Enqueue a task for a slot of its schedule, unless somebody has; tell whether we did."""
        moved = self._connection.execute(
            "UPDATE litestack_job_crons SET slot = ? WHERE task = ? AND slot < ?",
            (slot, job.task, slot),
        ).rowcount
        if moved:
            Store(self._connection).insert_unique(job)
        return bool(moved)

    def has_expired(self, now: float) -> bool:
        """Tell whether there is something to prune."""
        row = self._connection.execute(
            "SELECT 1 FROM litestack_jobs WHERE expires_at <= ? LIMIT 1", (now,)
        ).fetchone()
        return row is not None

    def prune(self, now: float) -> int:
        """Delete jobs whose time is over, a few hundred at most; return how many.

        Inside a transaction: a job that somebody retries meanwhile must not be deleted.
        """
        ids = json.dumps(
            [
                row[0]
                for row in self._connection.execute(
                    "SELECT id FROM litestack_jobs WHERE expires_at <= ? "
                    "ORDER BY expires_at LIMIT ?",
                    (now, PRUNE_STEP),
                )
            ]
        )
        self._connection.execute(
            "DELETE FROM litestack_job_errors WHERE job_id IN (SELECT value FROM json_each(?))",
            (ids,),
        )
        return self._connection.execute(
            "DELETE FROM litestack_jobs WHERE id IN (SELECT value FROM json_each(?))", (ids,)
        ).rowcount

    def optimize(self) -> None:
        """Let SQLite refresh its statistics where they are out of date."""
        self._connection.execute("PRAGMA optimize")

    # -- helpers ------------------------------------------------------------------------------

    def _candidates_by_group(
        self, queues: Sequence[str], limit: int, suspects: bool
    ) -> list[list[Claim]]:
        if queues == (ANY_QUEUE,):
            return [self._candidates_of_all(limit, suspects)]
        found = []
        for group in self._groups(queues):
            claims = [claim for name in group for claim in self._candidates(name, limit, suspects)]
            if len(group) > 1:
                claims.sort(key=_place)
            found.append(claims)
            if len(claims) >= limit:
                break
        return found

    def _with_one_suspect(
        self, groups: Sequence[Sequence[Claim]], queues: Sequence[str], limit: int
    ) -> list[list[Claim]]:
        """Return the candidates with the first of the suspects only, and others in their place."""
        found = self._candidates_by_group(queues, limit, suspects=False)
        number, first = next(
            (number, claim)
            for number, group in enumerate(groups)
            for claim in group
            if claim.crashes
        )
        if number < len(found):
            found[number] = sorted([*found[number], first], key=_place)
        return found

    def _candidates_of_all(self, limit: int, suspects: bool) -> list[Claim]:
        rows = self._connection.execute(_CANDIDATES_OF_FIRST[suspects], (limit,)).fetchall()
        if rows and rows[0][2] == rows[0][-1]:
            return [Claim._make(row[:-1]) for row in rows]
        rows = self._connection.execute(_CANDIDATES_OF_ALL[suspects], (limit,)).fetchall()
        return [Claim._make(row) for row in rows]

    def _candidates(self, queue: str, limit: int, suspects: bool) -> list[Claim]:
        rows = self._connection.execute(_CANDIDATES[suspects], (queue, limit)).fetchall()
        return [Claim._make(row) for row in rows]

    def _groups(self, queues: Sequence[str]) -> list[list[str]]:
        """Return the queues in order; those that ``*`` stands for are one group."""
        queues = list(dict.fromkeys(queues))  # one that is named twice would be claimed from twice
        if ANY_QUEUE not in queues:
            return [[queue] for queue in queues]
        others = [queue for queue in self._queued_queues() if queue not in queues]
        return [others if queue == ANY_QUEUE else [queue] for queue in queues]

    def _expand(self, queues: Sequence[str]) -> list[str]:
        return [queue for group in self._groups(queues) for queue in group]

    def _queued_queues(self) -> list[str]:
        rows = self._connection.execute(f"{_QUEUES} SELECT name FROM q WHERE name IS NOT NULL")
        return [row[0] for row in rows]


SUPERSEDED = Failure("an equal unique job was enqueued while this one ran, and takes its place")
OVERRAN = Failure(
    "JobTimeout: it did not stop at its timeout, so its worker process was ended with it"
)


def _place(claim: Claim) -> tuple[int, int]:
    """Return what jobs of a queue are sorted by."""
    return -claim.priority, claim.id


def _killed(crashes: int) -> Failure:
    text = "the worker process was killed while the job ran"
    if crashes >= MAX_CRASHES:
        text += f", {crashes} times now: it is not tried again"
    return Failure(f"WorkerKilledError: {text}")


def _ids(claims: Iterable[Claim]) -> str:
    return json.dumps([claim.id for claim in claims])

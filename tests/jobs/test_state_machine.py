"""The queue against a model, through any order of what workers, users and clocks can do."""

from __future__ import annotations

import itertools
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

from flask_litestack.errors import JobStateError
from flask_litestack.jobs.claims import MAX_CRASHES, Claim, Claims, Failure, Outcome, Retention
from flask_litestack.jobs.job import FINISHED, Job
from flask_litestack.jobs.schema import SCHEMA
from flask_litestack.jobs.store import NewJob, Store
from flask_litestack.sqlite import connect

WORKERS = ("worker-a", "worker-b")
QUEUES = ("default", "mail")
KEEP = 100.0


@dataclass
class Model:
    """What a job must look like."""

    id: int
    state: str
    queue: str
    priority: int
    run_at: float
    key: str | None
    exclusive: bool
    worker: str | None = None
    claim: int = 0
    failures: int = 0
    crashes: int = 0
    expires_at: float | None = None
    cancel_requested: bool = False
    started: bool = field(default=False, compare=False)

    @property
    def waits(self) -> bool:
        return self.state in ("scheduled", "queued")


class Queue(RuleBasedStateMachine):
    held = Bundle("held")

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.connection = connect(Path(self.folder.name) / "data.sqlite3")
        SCHEMA.ensure(self.connection)
        self.connection.isolation_level = None
        self.store = Store(self.connection)
        retention = Retention(KEEP, KEEP)
        self.claims = {name: Claims(self.connection, name, retention) for name in WORKERS}
        self.jobs: dict[int, Model] = {}
        self.paused: set[str] = set()
        self.now = 1000.0
        self.last_id = 0

    def teardown(self) -> None:
        if hasattr(self, "connection"):
            self.connection.close()
            self.folder.cleanup()

    # -- users ----------------------------------------------------------------------------------

    @rule(
        queue=st.sampled_from(QUEUES),
        priority=st.integers(-1, 1),
        after=st.sampled_from([0.0, 5.0, 50.0]),
        key=st.sampled_from([None, None, "a", "b"]),
        exclusive=st.booleans(),
    )
    def enqueue(
        self, queue: str, priority: int, after: float, key: str | None, exclusive: bool
    ) -> None:
        exclusive = exclusive and key is not None
        run_at = self.now + after
        state: Any = "scheduled" if after else "queued"
        found = self.store.insert_unique(
            NewJob(state, queue, priority, "t", "[[]]", self.now, run_at, None, key, exclusive)
        )
        in_the_way = self._conflict(key, exclusive)
        if in_the_way is not None:
            assert isinstance(found, Job)
            assert found.unique_key == key
            assert self.jobs[found.id].waits or self.jobs[found.id].exclusive
            return
        assert isinstance(found, int)
        assert found > self.last_id
        self.last_id = found
        self.jobs[found] = Model(found, state, queue, priority, run_at, key, exclusive)

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        job = self._any(data)
        if job is None:
            return
        if job.state in FINISHED:
            self._refused(lambda: self.store.cancel(job.id, now=self.now, keep=KEEP))
            return
        self.store.cancel(job.id, now=self.now, keep=KEEP)
        if job.state == "running":
            job.cancel_requested = True
        else:
            self._end(job, "cancelled")

    @rule(data=st.data())
    def retry(self, data: st.DataObject) -> None:
        job = self._any(data)
        if job is None:
            return
        if job.state not in ("failed", "cancelled") or self._conflict(job.key, job.exclusive):
            self._refused(lambda: self.store.retry(job.id, now=self.now))
            return
        self.store.retry(job.id, now=self.now)
        self._requeue(job)

    @rule()
    def retry_failed(self) -> None:
        retried, conflicts = self.store.retry_failed(queue=None, task=None, now=self.now)
        failed = [job for job in self.jobs.values() if job.state == "failed"]
        for job in failed:
            if self._conflict(job.key, job.exclusive):
                assert job.id in conflicts
            else:
                self._requeue(job)
                retried -= 1
        assert retried == 0

    @rule(queue=st.sampled_from(QUEUES))
    def pause(self, queue: str) -> None:
        self.store.pause(queue, self.now)
        self.paused.add(queue)

    @rule(queue=st.sampled_from(QUEUES))
    def resume(self, queue: str) -> None:
        assert self.store.resume(queue) == (queue in self.paused)
        self.paused.discard(queue)

    # -- workers --------------------------------------------------------------------------------

    @rule(
        target=held,
        worker=st.sampled_from(WORKERS),
        queues=st.sampled_from([("*",), ("mail", "*"), ("default",)]),
        limit=st.integers(1, 4),
        suspects=st.booleans(),
    )
    def take(self, worker: str, queues: tuple[str, ...], limit: int, suspects: bool) -> Any:
        taken = self.claims[worker].take(queues, limit, now=self.now, suspects=suspects)
        assert [claim.id for claim in taken] == self._expected(queues, limit, suspects)
        for claim in taken:
            self._taken(worker, claim)
        return multiple(*((worker, claim) for claim in taken))

    @rule(
        target=held,
        worker=st.sampled_from(WORKERS),
        queues=st.sampled_from([("*",), ("mail", "*"), ("default",), ("mail", "other")]),
        data=st.data(),
    )
    def take_one(self, worker: str, queues: tuple[str, ...], data: st.DataObject) -> Any:
        job = self._any(data)
        wanted = job.id if job else 4711
        claim = self.claims[worker].take_one(wanted, queues, now=self.now)
        if job is None or not self._is_next(job, queues):
            assert claim is None
            return multiple()
        assert claim is not None
        assert claim.id == job.id
        self._taken(worker, claim)
        return worker, claim

    @rule(
        ended=consumes(held),
        how=st.sampled_from(["succeeded", "failed", "scheduled", "queued", "cancelled"]),
        again=st.booleans(),
    )
    def finish(self, ended: tuple[str, Claim], how: Any, again: bool) -> None:
        """Also with claims that were lost meanwhile, and twice."""
        worker, claim = ended
        failures = claim.failures + (how in ("failed", "scheduled", "queued"))
        outcome = Outcome(
            claim,
            how,
            self.now,
            self.now,
            self.now + (7 if how == "scheduled" else 0),
            failures,
            failure=Failure("E: x") if how == "failed" else None,
        )
        mine = self._is_mine(worker, claim)
        lost = self.claims[worker].finish([outcome])
        assert bool(lost) is not mine
        if mine:
            job = self.jobs[claim.id]
            job.worker = None
            if how in ("scheduled", "queued") and job.cancel_requested:
                job.failures, job.run_at = failures, self.now
                self._end(job, "cancelled")
            elif how in ("scheduled", "queued") and self._waiting(job.key, job):
                self._end(job, "cancelled")  # an equal one was enqueued while it ran
            elif how in FINISHED:
                if how != "succeeded":
                    job.failures, job.run_at = failures, outcome.run_at
                self._end(job, how)
            else:
                job.state, job.failures, job.run_at = how, failures, outcome.run_at
        if again and claim.id in self.jobs:
            lost = self.claims[worker].finish([outcome])
            # A success that is stored already counts as ours.
            stored = self.jobs[claim.id].state == how == "succeeded"
            assert lost == [] if stored and self.jobs[claim.id].claim == claim.number else lost

    @rule(held=consumes(held))
    def give_back(self, held: tuple[str, Claim]) -> None:
        worker, claim = held
        mine = self._is_mine(worker, claim)
        self.claims[worker].give_back([claim], self.now)
        if mine:
            job = self.jobs[claim.id]
            job.worker = None
            if job.cancel_requested or self._waiting(job.key, job):
                self._end(job, "cancelled")
            else:
                job.state = "queued"

    @rule(dead=st.sampled_from(WORKERS), known=st.booleans(), data=st.data())
    def die(self, dead: str, known: bool, data: st.DataObject) -> None:
        """The other worker takes over; the claims of the dead one stay in the bundle."""
        theirs = [j for j in self.jobs.values() if j.state == "running" and j.worker == dead]
        ids = [job.id for job in theirs]
        started = data.draw(st.lists(st.sampled_from(ids), unique=True)) if ids and known else []
        other = self.claims[WORKERS[1 - WORKERS.index(dead)]]
        found = other.recover(dead, started=started if known else None, overran=[], now=self.now)
        assert [job_id for job_id, _ in found] == sorted(ids)
        for job in sorted(theirs, key=lambda job: job.id):
            job.worker = None
            crashed = not known or job.id in started
            crashes = job.crashes + crashed
            state = "queued"
            if job.cancel_requested:
                state = "cancelled"
            elif crashes >= MAX_CRASHES:
                state = "failed"
            if state == "queued" and self._waiting(job.key, job):
                self._end(job, "cancelled")
                continue
            job.crashes = crashes
            if state == "queued":
                job.state = state
            else:
                self._end(job, state)

    # -- the clock ------------------------------------------------------------------------------

    @rule(by=st.sampled_from([-500.0, -20.0, 1.0, 6.0, 60.0, 500.0]))
    def the_clock_moves(self, by: float) -> None:
        self.now += by

    @rule()
    def promote(self) -> None:
        count = self.claims["worker-a"].promote(self.now)
        due = [j for j in self.jobs.values() if j.state == "scheduled" and j.run_at <= self.now]
        assert count == len(due)
        for job in due:
            job.state = "queued"

    @rule()
    def prune(self) -> None:
        claims = self.claims["worker-a"]
        claims.begin()
        count = claims.prune(self.now)
        claims.commit()
        over = [
            job.id
            for job in self.jobs.values()
            if job.expires_at is not None and job.expires_at <= self.now
        ]
        assert count == len(over)
        for job_id in over:
            del self.jobs[job_id]

    # -- what must always be true ---------------------------------------------------------------

    @invariant()
    def the_table_is_as_the_model_says(self) -> None:
        if not hasattr(self, "connection"):
            return
        rows = self.connection.execute(
            "SELECT id, state, queue, priority, run_at, unique_key, exclusive, worker, claim, "
            "failures, crashes, expires_at, cancel_requested FROM litestack_jobs"
        ).fetchall()
        found = {row[0]: Model(*row[:6], bool(row[6]), *row[7:12], bool(row[12])) for row in rows}
        assert found == self.jobs

    @invariant()
    def a_cancelled_job_does_not_wait_to_run_again(self) -> None:
        if hasattr(self, "connection"):
            assert not [job for job in self.jobs.values() if job.waits and job.cancel_requested]

    @invariant()
    def equal_unique_jobs_do_not_wait_side_by_side(self) -> None:
        if not hasattr(self, "connection"):
            return
        for one, two in itertools.combinations(self.jobs.values(), 2):
            if one.key is not None and one.key == two.key:
                assert not (one.waits and two.waits)

    @invariant()
    def counts_add_up(self) -> None:
        if hasattr(self, "connection"):
            assert sum(self.store.counts().values()) == len(self.jobs)

    # -- helpers --------------------------------------------------------------------------------

    def _any(self, data: st.DataObject) -> Model | None:
        return data.draw(st.sampled_from(list(self.jobs.values()))) if self.jobs else None

    def _refused(self, call: Any) -> None:
        try:
            call()
        except JobStateError:
            return
        raise AssertionError("it was not refused")

    def _taken(self, worker: str, claim: Claim) -> None:
        job = self.jobs[claim.id]
        job.state, job.worker, job.claim = "running", worker, job.claim + 1
        assert claim.number == job.claim
        assert (claim.failures, claim.crashes) == (job.failures, job.crashes)

    def _end(self, job: Model, state: str) -> None:
        job.state = state
        job.expires_at = self.now + KEEP

    def _requeue(self, job: Model) -> None:
        job.state, job.run_at, job.expires_at = "queued", self.now, None
        job.failures = job.crashes = 0
        job.cancel_requested = False

    def _is_mine(self, worker: str, claim: Claim) -> bool:
        job = self.jobs.get(claim.id)
        return job is not None and job.state == "running" and job.claim == claim.number

    def _waiting(self, key: str | None, but: Model | None = None) -> Model | None:
        if key is None:
            return None
        return next(
            (j for j in self.jobs.values() if j.key == key and j.waits and j is not but), None
        )

    def _conflict(self, key: str | None, exclusive: bool) -> Model | None:
        """Another job that keeps one with this key from waiting."""
        if key is None:
            return None
        running = (
            job
            for job in self.jobs.values()
            if exclusive and job.key == key and job.exclusive and job.state == "running"
        )
        return self._waiting(key) or next(running, None)

    def _is_next(self, job: Model, queues: tuple[str, ...]) -> bool:
        """Whether a job is the first of the only queue of these that has any."""
        queued = [
            other
            for other in self.jobs.values()
            if other.state == "queued" and ("*" in queues or other.queue in queues)
        ]
        first = min(queued, key=lambda other: (-other.priority, other.id), default=None)
        return (
            job is first
            and not job.crashes
            and job.queue not in self.paused
            and len({other.queue for other in queued}) == 1
        )

    def _expected(self, queues: tuple[str, ...], limit: int, suspects: bool) -> list[int]:
        found: list[int] = []
        for name in queues:
            group = [
                job
                for job in self.jobs.values()
                if job.state == "queued"
                and job.queue not in self.paused
                and (job.queue == name or (name == "*" and job.queue not in queues))
                and (suspects or not job.crashes)
            ]
            group.sort(key=lambda job: (-job.priority, job.id))
            for job in group:
                if job.crashes:
                    if not suspects:
                        continue
                    suspects = False
                found.append(job.id)
        return found[:limit]


TestQueue = Queue.TestCase
TestQueue.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flask_litestack.jobs.claims import Claim, Claims, Failure, Outcome, Retention
from flask_litestack.jobs.job import Job, State
from flask_litestack.jobs.schema import SCHEMA
from flask_litestack.jobs.store import NewJob, Store
from flask_litestack.sqlite import connect
from flask_litestack.sqlite.connection import Connection


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[Connection]:
    connection = connect(tmp_path / "data.sqlite3")
    SCHEMA.ensure(connection)
    connection.isolation_level = None
    yield connection
    connection.close()


@pytest.fixture
def store(connection: Connection) -> Store:
    return Store(connection)


@pytest.fixture
def claims(connection: Connection) -> Claims:
    return Claims(connection, "worker-a", Retention(60, 600))


def put(store: Store, queue: str = "default", priority: int = 0, **options: Any) -> int:
    state: State = options.pop("state", "queued")
    values = {"task": "t", "arguments": "[[]]", "created_at": 1.0, "run_at": 1.0, **options}
    found = store.insert_unique(NewJob(state, queue, priority, **values))
    assert isinstance(found, int)
    return found


def ids(claims: list[Claim]) -> list[int]:
    return [claim.id for claim in claims]


def end(claim: Claim, state: State = "succeeded", **options: Any) -> Outcome:
    values = {"run_at": 5.0, "failures": claim.failures, **options}
    return Outcome(claim, state, started_at=2.0, finished_at=3.0, **values)


def get(store: Store, job_id: int) -> Job:
    job = store.get(job_id)
    assert job is not None
    return job


def test_priority_first_then_first_come_first_served(store: Store, claims: Claims) -> None:
    low, high, other = put(store), put(store, priority=5), put(store)
    assert ids(claims.take(["default"], 10, now=2)) == [high, low, other]
    assert claims.take(["default"], 10, now=2) == []


def test_queues_in_order(store: Store, claims: Claims) -> None:
    a, b, c, d = (put(store, queue, priority) for queue, priority in ["a1", "b9", "c5", "a2"])
    assert ids(claims.take(["a", "b"], 10, now=2)) == [d, a, b]
    assert ids(claims.take(("*",), 10, now=2)) == [c]


def test_the_wildcard_is_all_others_as_if_they_were_one(store: Store, claims: Claims) -> None:
    jobs = [put(store, "a"), put(store, "b", 5), put(store, "c"), put(store, "urgent")]
    taken = ids(claims.take(["urgent", "*"], 3, now=2))
    assert taken == [jobs[3], jobs[1], jobs[0]]
    assert ids(claims.take(["urgent", "*"], 3, now=2)) == [jobs[2]]


def test_a_paused_queue_is_left_alone(store: Store, claims: Claims) -> None:
    put(store, "a")
    b = put(store, "b")
    store.pause("a", 1.0)
    assert ids(claims.take(("*",), 9, now=2)) == [b]
    assert not claims.has_queued(("*",))
    store.resume("a")
    assert claims.has_queued(("*",))


def test_a_certain_job_is_claimed_if_it_is_ready(store: Store, claims: Claims) -> None:
    wanted, next_one, later = put(store), put(store), put(store, state="scheduled", run_at=9.0)
    claim = claims.take_one(wanted, ("*",), now=2)
    assert claim == Claim(wanted, 0, "default", "t", "[[]]", 1, 1.0, None, 0, 0, 0)
    assert get(store, wanted).state == "running"
    assert claims.take_one(wanted, ("*",), now=2) is None
    assert claims.take_one(later, ("*",), now=2) is None
    assert claims.take_one(next_one, ("mail", "news"), now=2) is None
    store.pause("default", 2.0)
    assert claims.take_one(next_one, ("*",), now=2) is None
    store.resume("default")
    assert claims.take_one(next_one, ("mail", "default"), now=2) is not None


def test_a_certain_job_is_not_claimed_before_its_turn(store: Store, claims: Claims) -> None:
    low, high, other = put(store), put(store, priority=5), put(store, "mail")
    assert claims.take_one(low, ("default",), now=2) is None
    assert claims.take_one(high, ("*",), now=2) is None
    assert claims.take_one(high, ("mail", "default"), now=2) is None
    assert claims.take_one(high, ("default", "news"), now=2) is not None
    assert claims.take_one(low, ("default",), now=2) is not None
    assert claims.take_one(other, ("*",), now=2) is not None


def test_a_suspect_of_a_crash_is_not_claimed_out_of_turn(store: Store, claims: Claims) -> None:
    job_id = put(store)
    claims.take(("*",), 1, now=2)
    claims.recover("worker-a", started=[job_id], overran=[], now=3)
    assert claims.take_one(job_id, ("*",), now=4) is None
    assert ids(claims.take(("*",), 1, now=4)) == [job_id]


def test_scheduled_jobs_are_promoted_when_they_are_due(store: Store, claims: Claims) -> None:
    later = put(store, state="scheduled", run_at=20.0)
    soon = put(store, state="scheduled", run_at=10.0)
    assert claims.next_due() == 10.0
    assert claims.promote(9.9) == 0
    assert claims.promote(10.0) == 1
    assert ids(claims.take(("*",), 9, now=10)) == [soon]
    assert claims.next_due() == 20.0
    assert get(store, later).state == "scheduled"


def test_success_is_stored_for_all_at_once(store: Store, claims: Claims) -> None:
    for _ in range(3):
        put(store)
    taken = claims.take(("*",), 9, now=2)
    assert claims.finish([end(claim) for claim in taken]) == []
    assert store.counts()["succeeded"] == 3
    job = get(store, taken[0].id)
    assert job.started_at is not None
    assert job.started_at.timestamp() == 2.0
    assert job.finished_at is not None
    assert job.worker is None


def test_with_no_retention_a_success_is_deleted(store: Store, connection: Connection) -> None:
    claims = Claims(connection, "worker-a", Retention(0, 600))
    put(store)
    (claim,) = claims.take(("*",), 9, now=2)
    assert claims.finish([end(claim)]) == []
    assert store.get(claim.id) is None


def test_an_old_claim_ends_nothing(store: Store, claims: Claims, connection: Connection) -> None:
    put(store)
    put(store)
    old, other = claims.take(("*",), 9, now=2)
    assert claims.recover("worker-a", started=[old.id], overran=[], now=3) == [
        (old.id, "queued"),
        (other.id, "queued"),
    ]
    new = Claims(connection, "worker-b", Retention(60, 600))
    again = new.take(("*",), 1, now=4)
    assert ids(again) == [old.id]
    for state in ("succeeded", "failed", "queued", "cancelled"):
        outcome = end(old, state)  # type: ignore[arg-type]
        assert claims.finish([outcome]) == [outcome]
    claims.give_back([old], now=3)
    assert get(store, old.id).state == "running"
    assert new.finish([end(again[0])]) == []


def test_one_lost_claim_does_not_keep_the_others_from_success(store: Store, claims: Claims) -> None:
    first, second = put(store), put(store)
    one, two = claims.take(("*",), 9, now=2)
    claims.give_back([one], now=3)
    lost = claims.finish([end(one), end(two)])
    assert ids([outcome.claim for outcome in lost]) == [first]
    assert get(store, second).state == "succeeded"
    assert get(store, first).state == "queued"


def test_what_is_given_back_keeps_its_place(store: Store, claims: Claims) -> None:
    first, second = put(store), put(store)
    claims.give_back(claims.take(("*",), 1, now=2), now=3)
    assert ids(claims.take(("*",), 9, now=2)) == [first, second]


def test_a_failure_is_kept_with_its_traceback(store: Store, claims: Claims) -> None:
    job_id = put(store)
    (claim,) = claims.take(("*",), 1, now=2)
    failure = Failure("ValueError: no", "Traceback ...\n" + "x" * 100_000)
    claims.finish([end(claim, "scheduled", run_at=9.0, failures=1, failure=failure)])
    assert (get(store, job_id).state, get(store, job_id).failures) == ("scheduled", 1)
    (attempt,) = store.attempts(job_id)
    assert (attempt.number, attempt.error, attempt.worker) == (1, "ValueError: no", "worker-a")
    assert len(attempt.traceback) == 20_000


def test_only_jobs_that_had_been_started_count_a_crash(store: Store, claims: Claims) -> None:
    started, waiting = put(store), put(store)
    claims.take(("*",), 9, now=2)
    claims.recover("worker-a", started=[started], overran=[], now=3)
    assert get(store, started).crashes == 1
    assert get(store, waiting).crashes == 0
    assert store.attempts(waiting) == []


def test_the_third_crash_is_the_last(store: Store, claims: Claims) -> None:
    job_id = put(store)
    states = []
    for _ in range(3):
        claims.take(("*",), 9, now=2)
        states += claims.recover("worker-a", started=None, overran=[], now=3)
    assert [state for _, state in states] == ["queued", "queued", "failed"]
    assert "3 times now" in store.attempts(job_id)[-1].error


def test_two_suspects_do_not_run_side_by_side(store: Store, claims: Claims) -> None:
    one, two = put(store), put(store)
    claims.take(("*",), 9, now=2)
    claims.recover("worker-a", started=None, overran=[], now=3)
    three = put(store)
    assert ids(claims.take(("*",), 9, now=4)) == [one, three]
    assert claims.take(("*",), 9, now=4, suspects=False) == []
    assert ids(claims.take(("*",), 9, now=4)) == [two]


def test_suspects_do_not_hold_up_the_others(store: Store, claims: Claims) -> None:
    suspects = [put(store) for _ in range(4)]
    claims.take(("*",), 9, now=2)
    claims.recover("worker-a", started=None, overran=[], now=3)
    others = [put(store, queue=queue) for queue in ("default", "mail", "default")]
    taken = claims.take(("default", "*"), 3, now=4)
    assert ids(taken) == [suspects[0], others[0], others[2]]
    claims.give_back(taken, now=5)
    assert ids(claims.take(("*",), 9, now=6)) == [suspects[0], *others]


def test_a_cancelled_job_of_a_dead_worker_does_not_run_again(store: Store, claims: Claims) -> None:
    job_id = put(store)
    claims.take(("*",), 9, now=2)
    assert store.cancel(job_id, now=3, keep=60).state == "running"
    assert claims.cancel_requests() == {job_id}
    assert claims.recover("worker-a", started=None, overran=[], now=3) == [(job_id, "cancelled")]


def test_a_cancelled_job_is_not_tried_again(store: Store, claims: Claims) -> None:
    jobs = [put(store) for _ in range(4)]
    taken = claims.take(("*",), 9, now=2)
    for job_id in jobs:
        store.cancel(job_id, now=3, keep=60)
    claims.finish([end(taken[0], "scheduled", run_at=9.0, failures=1, failure=Failure("E: x"))])
    claims.finish([end(taken[1], "queued"), end(taken[2], "failed")])
    claims.give_back([taken[3]], now=3)
    states = [get(store, job_id).state for job_id in jobs]
    assert states == ["cancelled", "cancelled", "failed", "cancelled"]
    assert [attempt.error for attempt in store.attempts(jobs[0])] == ["E: x"]
    assert get(store, jobs[0]).failures == 1
    finished = get(store, jobs[3]).finished_at
    assert finished is not None
    assert finished.timestamp() == 3
    assert store.retry(jobs[0], now=4).cancel_requested is False


def test_a_queue_that_is_named_twice_is_claimed_from_once(store: Store, claims: Claims) -> None:
    first, second = put(store), put(store, "mail")
    queues = ("default", "mail", "default", "*", "*")
    assert ids(claims.take(queues, 9, now=2)) == [first, second]


def test_a_retry_gives_way_to_an_equal_job_enqueued_meanwhile(store: Store, claims: Claims) -> None:
    first = put(store, unique_key="k")
    (claim,) = claims.take(("*",), 9, now=2)
    second = put(store, unique_key="k")
    assert claims.finish([end(claim, "scheduled", failures=1)]) == []
    assert get(store, first).state == "cancelled"
    assert "equal unique job" in store.attempts(first)[-1].error
    assert get(store, second).state == "queued"


def test_an_exclusive_job_keeps_others_out_while_it_runs(store: Store, claims: Claims) -> None:
    first = put(store, unique_key="k", exclusive=True)
    (claim,) = claims.take(("*",), 9, now=2)
    found = store.insert_unique(
        NewJob("queued", "default", 0, "t", "[[]]", 1, 1, unique_key="k", exclusive=True)
    )
    assert isinstance(found, Job)
    assert (found.id, found.state, found.new) == (first, "running", False)
    claims.finish([end(claim, "scheduled", failures=1)])
    assert get(store, first).state == "scheduled"


def test_pruning_takes_what_is_over_a_little_at_a_time(store: Store, claims: Claims) -> None:
    for _ in range(1200):
        put(store)
    while taken := claims.take(("*",), 500, now=2):
        claims.finish([end(claim) for claim in taken])
    kept = put(store)
    assert not claims.has_expired(62.9)
    assert claims.has_expired(63.0)
    steps = []
    while claims.has_expired(63.0):
        claims.begin()
        steps.append(claims.prune(63.0))
        claims.commit()
    assert steps == [500, 500, 200]
    assert get(store, kept).state == "queued"
    assert sum(store.counts().values()) == 1


def test_a_slot_of_a_schedule_is_enqueued_once(store: Store, claims: Claims) -> None:
    job = NewJob("queued", "default", 0, "t", "[[]]", 1, 1)
    assert claims.cron_slot("t", "* * * * * UTC") is None
    claims.begin_schedule("t", "* * * * * UTC", 60.0)
    assert claims.cron_slot("t", "* * * * * UTC") == 60.0
    assert claims.enqueue_slot(job, 120.0)
    assert not claims.enqueue_slot(job, 120.0)
    assert not claims.enqueue_slot(job, 60.0)
    assert store.counts()["queued"] == 1
    assert claims.cron_slot("t", "0 * * * * UTC") is None  # a changed schedule begins anew

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from flask import Flask

from flask_litestack import Litestack
from flask_litestack.errors import ArgumentsError
from flask_litestack.jobs import Task
from flask_litestack.pytest_plugin import jobs as jobs
from flask_litestack.testing import JobFailed, JobTester


@pytest.fixture
def send(litestack: Litestack) -> Task[[int], None]:
    @litestack.task(retries=0)
    def send(n: int) -> None:
        if n < 0:
            raise ValueError("negative")

    return send


def test_what_was_enqueued(app: Flask, jobs: JobTester, send: Task[[int], None]) -> None:
    jobs.assert_none_enqueued()
    with app.app_context():
        send.enqueue(1)
        send.using(run_after=60).enqueue(2)
    assert [job.args for job in jobs.enqueued(send)] == [[1], [2]]
    assert jobs.assert_enqueued(send, 2).state == "scheduled"
    assert jobs.assert_enqueued(send).args == [1]
    with pytest.raises(AssertionError, match=r"no job .*send \(3,\) was enqueued; there are"):
        jobs.assert_enqueued(send, 3)
    with pytest.raises(AssertionError, match="jobs were enqueued"):
        jobs.assert_none_enqueued(send)


def test_arguments_are_the_same_by_position_and_by_name(
    app: Flask, litestack: Litestack, jobs: JobTester, send: Task[[int], None]
) -> None:
    @litestack.task
    def greet(name: str, greeting: str = "hello") -> None:
        pass

    with app.app_context():
        send.enqueue(n=7)
        greet.enqueue("Ann", "hello")
    assert jobs.assert_enqueued(send, 7).kwargs == {"n": 7}
    jobs.assert_enqueued(greet, name="Ann")
    with pytest.raises(AssertionError, match="no job"):
        jobs.assert_enqueued(greet, "Ann", "good day")
    with pytest.raises(ArgumentsError, match="missing a required argument"):
        jobs.assert_enqueued(greet, greeting="hello")


def test_run_raises_what_a_task_raised(
    app: Flask, jobs: JobTester, send: Task[[int], None]
) -> None:
    with app.app_context():
        send.enqueue(-1)
    with pytest.raises(JobFailed, match="ValueError: negative"):
        jobs.run()
    jobs.assert_none_enqueued()


def test_only_one_queue(app: Flask, jobs: JobTester, send: Task[[int], None]) -> None:
    with app.app_context():
        send.enqueue(1)
        send.using(queue="mail").enqueue(2)
    assert [job.args for job in jobs.run(queue="mail")] == [[2]]
    assert [job.args for job in jobs.enqueued()] == [[1]]


def test_a_frozen_clock(app: Flask, jobs: JobTester, send: Task[[int], None]) -> None:
    with jobs.freeze(datetime(2026, 1, 1, tzinfo=UTC)) as clock, app.app_context():
        job = send.using(run_after=timedelta(days=1)).enqueue(1)
        assert job.run_at == datetime(2026, 1, 2, tzinfo=UTC)
        assert jobs.run() == []
        clock.advance(timedelta(days=1))
        assert [job.state for job in jobs.run()] == ["succeeded"]
        clock.set(datetime(2026, 1, 1, tzinfo=UTC))
        assert send.enqueue(2).created_at == datetime(2026, 1, 1, tzinfo=UTC)


def test_cron(app: Flask, litestack: Litestack, jobs: JobTester) -> None:
    seen: list[float] = []

    @litestack.task(cron="0 4 * * *", timezone="Europe/Berlin")
    def tidy_up() -> None:
        seen.append(clock())

    with jobs.freeze(datetime(2026, 6, 1, tzinfo=UTC)) as clock:
        assert jobs.run(crons=True) == []
        clock.set(datetime(2026, 6, 1, 1, 59, tzinfo=UTC))
        assert jobs.run(crons=True) == []
        clock.set(datetime(2026, 6, 1, 2, 0, tzinfo=UTC))
        assert len(jobs.run(crons=True)) == 1
        assert jobs.run(crons=True) == []
        clock.advance(timedelta(days=10))  # the box was off: one for all of them
        assert len(jobs.run(crons=True)) == 1
        clock.advance(timedelta(days=-5))  # and then the clock was put back
        assert jobs.run(crons=True) == []
        with app.app_context():
            (status,) = litestack.jobs.crons()
    assert status.next == datetime(2026, 6, 7, 2, 0, tzinfo=UTC)
    assert len(seen) == 2

"""Jobs are run on this thread, by the same code as in a worker."""

from __future__ import annotations

import logging
import math
from contextlib import suppress
from typing import Any

import pytest
from flask import Flask, g
from sqlalchemy import select

from flask_litestack import Litestack, LockTimeout, signals
from flask_litestack.jobs import Discard, Job, Retry, RetryPolicy, current_job
from flask_litestack.jobs.runner import watching_commits
from flask_litestack.testing import JobFailed, JobTester

from ..conftest import Post


def titles(app: Flask, litestack: Litestack) -> list[str]:
    with app.app_context():
        return list(litestack.db.session.scalars(select(Post.title).order_by(Post.id)))


def test_writes_and_success_are_one_commit(
    app: Flask, litestack: Litestack, jobs: JobTester
) -> None:
    @litestack.task
    def write(title: str) -> None:
        litestack.db.session.add(Post(title=title))

    with app.app_context():
        write.enqueue("a")
    (job,) = jobs.run()
    assert job.state == "succeeded"
    assert titles(app, litestack) == ["First", "a"]


def test_an_exception_rolls_everything_back(
    app: Flask, litestack: Litestack, jobs: JobTester
) -> None:
    @litestack.task(retries=0)
    def write() -> None:
        litestack.db.session.add(Post(title="a"))
        litestack.db.session.flush()
        write.enqueue()
        raise ValueError("no")

    with app.app_context():
        job_id = write.enqueue().id
    (job,) = jobs.run(raise_errors=False)
    assert (job.state, job.failures) == ("failed", 1)
    with app.app_context():
        (attempt,) = litestack.jobs.attempts(job_id)
        assert attempt.error == "ValueError: no"
        assert "in write" in attempt.traceback
        assert sum(litestack.jobs.counts().values()) == 1
    assert titles(app, litestack) == ["First"]


def test_a_flush_that_fails_fails_the_job(
    app: Flask, litestack: Litestack, jobs: JobTester
) -> None:
    @litestack.task(retries=0)
    def write() -> None:
        litestack.db.session.add(Post(id=1, title="taken"))

    with app.app_context():
        write.enqueue()
    with pytest.raises(JobFailed, match="UNIQUE constraint failed"):
        jobs.run()
    assert titles(app, litestack) == ["First"]


def test_even_sys_exit_only_fails_the_job(
    app: Flask, litestack: Litestack, jobs: JobTester
) -> None:
    @litestack.task(retries=0)
    def leave() -> None:
        raise SystemExit(3)

    with app.app_context():
        leave.enqueue()
    assert jobs.run(raise_errors=False)[0].state == "failed"


def test_db_write_inside_a_job_leaves_the_commit_to_the_worker(
    app: Flask, litestack: Litestack, jobs: JobTester
) -> None:
    @litestack.task(retries=0)
    def write(fail: bool) -> None:
        with litestack.db.write() as session:
            session.get_one(Post, 1).views += 1
        with suppress(ZeroDivisionError), litestack.db.write() as session:
            session.get_one(Post, 1).views += 100
            raise ZeroDivisionError
        if fail:
            raise ValueError

    with app.app_context():
        write.enqueue(True)
        write.enqueue(False)
    assert [job.state for job in jobs.run(raise_errors=False)] == ["failed", "succeeded"]
    with app.app_context():
        assert litestack.db.session.get_one(Post, 1).views == 1


def test_work_for_after_the_commit_waits_for_the_end_of_the_job(
    app: Flask, litestack: Litestack, jobs: JobTester
) -> None:
    said: list[str] = []

    @litestack.task(retries=0)
    def announce(fail: bool) -> None:
        litestack.db.after_commit(lambda: said.append("published"))
        assert said == []
        if fail:
            raise ValueError

    with app.app_context():
        announce.enqueue(True)
        announce.enqueue(False)
    jobs.run(raise_errors=False)
    assert said == ["published"]


def test_children_belong_to_the_job(app: Flask, litestack: Litestack, jobs: JobTester) -> None:
    @litestack.task(retries=0)
    def child(n: int) -> None:
        pass

    @litestack.task(retries=0)
    def parent(fail: bool) -> None:
        for n in range(3):
            child.enqueue(n)
        with litestack.db.session.begin_nested() as savepoint:
            child.enqueue(99)
            savepoint.rollback()
        if fail:
            raise ValueError

    with app.app_context():
        parent.enqueue(True)
        parent.enqueue(False)
    done = jobs.run(raise_errors=False)
    assert [(job.task.rpartition(".")[2], job.state) for job in done] == [
        ("parent", "failed"),
        ("parent", "succeeded"),
        ("child", "succeeded"),
        ("child", "succeeded"),
        ("child", "succeeded"),
    ]


def test_an_app_context_of_the_tasks_own_stores_its_jobs_at_once(
    app: Flask, litestack: Litestack, jobs: JobTester
) -> None:
    """Its session is not the job's: nobody would commit it."""

    @litestack.task
    def child() -> None:
        pass

    @litestack.task
    def parent() -> None:
        with app.app_context():
            child.enqueue()

    with app.app_context():
        parent.enqueue()
    assert [job.state for job in jobs.run()] == ["succeeded", "succeeded"]


def test_retries_with_growing_delays_until_they_are_used_up(
    app: Flask, litestack: Litestack, jobs: JobTester
) -> None:
    @litestack.task(retries=RetryPolicy(limit=2, first_delay=10, factor=2, jitter=0))
    def fail() -> None:
        raise OSError("down")

    with app.app_context():
        job_id = fail.enqueue().id
    with jobs.freeze() as clock:
        states = []
        for seconds in (0, 9.9, 0.2, 19.9, 0.2, 1000):
            clock.advance(seconds)
            states += [job.state for job in jobs.run(raise_errors=False)]
        assert states == ["scheduled", "scheduled", "failed"]
    with app.app_context():
        assert [a.error for a in litestack.jobs.attempts(job_id)] == ["OSError: down"] * 3


def test_a_jobs_own_number_of_retries(app: Flask, litestack: Litestack, jobs: JobTester) -> None:
    @litestack.task(retries=5)
    def fail() -> None:
        raise OSError

    with app.app_context():
        fail.using(retries=0).enqueue()
    assert jobs.run(raise_errors=False)[0].state == "failed"


def test_a_task_asks_to_be_run_again(app: Flask, litestack: Litestack, jobs: JobTester) -> None:
    @litestack.task
    def later() -> None:
        raise Retry("not yet", delay=100)

    with app.app_context():
        later.enqueue()
    with jobs.freeze() as clock:
        (job,) = jobs.run(raise_errors=False)
        assert job.state == "scheduled"
        assert job.run_at.timestamp() == pytest.approx(clock() + 100)


def test_a_delay_that_makes_no_sense_fails_the_job(
    app: Flask, litestack: Litestack, jobs: JobTester
) -> None:
    class Never(RetryPolicy):
        def delay(self, retry: int, uniform: Any = None) -> float:
            return math.nan

    @litestack.task(retries=Never())
    def act() -> None:
        raise ValueError("no")

    with app.app_context():
        act.enqueue()
    (job,) = jobs.run(raise_errors=False)
    assert job.state == "failed"
    assert "its delay is a number of seconds" in errors(app, litestack, job.id)[0]


def test_a_task_discards_its_job(app: Flask, litestack: Litestack, jobs: JobTester) -> None:
    @litestack.task(retries=RetryPolicy(discard_on=(KeyError,), retry_on=(OSError,)))
    def act(what: str) -> None:
        raise {"discard": Discard("gone"), "key": KeyError("gone"), "value": ValueError("x")}[what]

    with app.app_context():
        for what in ("discard", "key", "value"):
            act.enqueue(what)
    done = jobs.run(raise_errors=False)
    assert [job.state for job in done] == ["cancelled", "cancelled", "failed"]


def test_arguments_that_cannot_be_read_fail_at_once(
    app: Flask, litestack: Litestack, jobs: JobTester
) -> None:
    @litestack.task
    def act(n: int) -> None:
        pass

    with app.app_context():
        job_id = act.enqueue(1).id
        connection = litestack.jobs.connect()
        connection.execute("UPDATE litestack_jobs SET arguments = '{'")
        connection.close()
    assert jobs.run(raise_errors=False)[0].state == "failed"
    with app.app_context():
        assert "cannot be read" in litestack.jobs.attempts(job_id)[0].error


def test_an_unknown_task_waits_and_fails_in_the_end(
    app: Flask, litestack: Litestack, jobs: JobTester
) -> None:
    @litestack.task
    def act() -> None:
        pass

    with app.app_context():
        job_id = act.enqueue().id
    del litestack.jobs._tasks[act.name]
    with jobs.freeze() as clock:
        runs = 0
        while (job := jobs.run(raise_errors=False)[0]).state != "failed":
            assert job.state == "scheduled"
            clock.advance(5)
            runs += 1
    assert runs == 60
    with app.app_context():
        attempts = litestack.jobs.attempts(job_id)
        assert len(attempts) == 2
        assert "declares the task" in attempts[-1].error


def test_a_busy_database_is_not_the_jobs_fault(
    app: Flask, litestack: Litestack, jobs: JobTester
) -> None:
    @litestack.task(retries=0)
    def act() -> None:
        raise LockTimeout("the write lock was not free")

    with app.app_context():
        act.enqueue()
    (job,) = jobs.run(raise_errors=False)
    assert (job.state, job.failures) == ("scheduled", 0)


def test_the_current_job(app: Flask, litestack: Litestack, jobs: JobTester) -> None:
    seen: list[Any] = []

    @litestack.task
    def act() -> None:
        job = current_job()
        assert job is not None
        job.check()
        seen.append((job.id, job.task, job.attempt, job.cancelled, job.stopping))

    assert current_job() is None
    with app.app_context():
        job_id = act.enqueue().id
    jobs.run()
    assert seen == [(job_id, act.name, 1, False, False)]
    assert current_job() is None


def test_each_job_has_an_app_context_of_its_own(
    app: Flask, litestack: Litestack, jobs: JobTester
) -> None:
    seen: list[bool] = []

    @litestack.task
    def act() -> None:
        seen.append("marked" in g)
        g.marked = True

    with app.app_context():
        act.enqueue()
        act.enqueue()
    jobs.run()
    assert seen == [False, False]


def test_a_coroutine_is_run(app: Flask, litestack: Litestack, jobs: JobTester) -> None:
    @litestack.task
    async def act(title: str) -> None:
        litestack.db.session.add(Post(title=title))

    with app.app_context():
        act.enqueue("async")
    jobs.run()
    assert titles(app, litestack) == ["First", "async"]


def test_a_teardown_function_that_fails_does_not_hide_a_success(
    app: Flask, litestack: Litestack, jobs: JobTester, caplog: pytest.LogCaptureFixture
) -> None:
    failing: list[bool] = []

    @app.teardown_appcontext
    def teardown(error: BaseException | None) -> None:
        if failing and current_job() is not None:
            raise RuntimeError("teardown")

    @litestack.task
    def act() -> None:
        failing.append(True)

    with app.app_context():
        act.enqueue()
    (job,) = jobs.run()
    assert job.state == "succeeded"
    assert "the app context did not close" in caplog.text


def test_signals(app: Flask, litestack: Litestack, jobs: JobTester) -> None:
    seen: list[tuple[Any, ...]] = []

    @litestack.task(retries=0)
    def act(fail: bool) -> None:
        if fail:
            raise ValueError("no")

    def started(sender: Flask, job: Job) -> None:
        seen.append((sender, "started", job.id))

    def ended(sender: Flask, job: Job, state: str, error: Any, seconds: float) -> None:
        seen.append((state, str(error), seconds >= 0))

    with (
        signals.job_started.connected_to(started, app),
        signals.job_ended.connected_to(ended, app),
        app.app_context(),
    ):
        first, second = act.enqueue(False), act.enqueue(True)
        jobs.run(raise_errors=False)
    assert seen == [
        (app, "started", first.id),
        ("succeeded", "None", True),
        (app, "started", second.id),
        ("failed", "no", True),
    ]


def test_a_task_that_commits_by_itself_is_named_once(
    app: Flask, litestack: Litestack, jobs: JobTester, caplog: pytest.LogCaptureFixture
) -> None:
    @litestack.task(name=f"commits-{id(app)}")
    def commits() -> None:
        litestack.db.session.add(Post(title="x"))
        litestack.db.session.commit()

    @litestack.task(name=f"does-not-{id(app)}")
    def does_not() -> None:
        litestack.db.session.add(Post(title="x"))
        with litestack.db.session.begin_nested():
            litestack.db.session.add(Post(title="y"))
        with litestack.db.write() as session:
            session.add(Post(title="z"))

    with app.app_context(), watching_commits(litestack.db):
        for _ in range(2):
            commits.enqueue()
            does_not.enqueue()
        with caplog.at_level(logging.WARNING):
            jobs.run()
    warnings = [r.getMessage() for r in caplog.records if "commits by itself" in r.getMessage()]
    assert len(warnings) == 1
    assert warnings[0].startswith(f"task {commits.name} commits")


def errors(app: Flask, litestack: Litestack, job_id: int) -> list[str]:
    with app.app_context():
        return [attempt.error for attempt in litestack.jobs.attempts(job_id)]


@pytest.mark.parametrize("text", ["caf\udce9.md", "one\0two", "long " * 1_000_000])
def test_the_text_of_an_error_may_be_anything(
    app: Flask, litestack: Litestack, jobs: JobTester, text: str
) -> None:
    @litestack.task(retries=0)
    def act() -> None:
        raise ValueError(text)

    with app.app_context():
        act.enqueue()
    (job,) = jobs.run(raise_errors=False)
    assert job.state == "failed"
    (error,) = errors(app, litestack, job.id)
    shown = {"caf\udce9.md": "caf\\udce9.md", "one\0two": "one\\x00two"}.get(text, text)
    assert error == f"ValueError: {shown}"[:1000]


def test_who_hears_of_a_failure_cannot_store_what_failed(
    app: Flask, litestack: Litestack, jobs: JobTester
) -> None:
    @litestack.task(retries=0)
    def act() -> None:
        litestack.db.session.add(Post(title="failed"))
        litestack.db.session.flush()
        raise ValueError

    def ended(sender: Flask, **about: Any) -> None:
        litestack.db.session.add(Post(title="heard of it"))
        litestack.db.session.commit()

    with signals.job_ended.connected_to(ended, app), app.app_context():
        act.enqueue()
        jobs.run(raise_errors=False)
    assert titles(app, litestack) == ["First", "heard of it"]


def test_who_hears_of_an_end_may_enqueue(app: Flask, litestack: Litestack, jobs: JobTester) -> None:
    @litestack.task
    def alert(what: str) -> None:
        pass

    @litestack.task(retries=0)
    def act(what: str) -> None:
        if what != "nothing":
            litestack.db.session.add(Post(title=what))
        if what == "fail":
            raise ValueError

    def ended(sender: Flask, job: Any, **about: Any) -> None:
        if job.task == act.name:
            alert.enqueue(about["state"])

    with signals.job_ended.connected_to(ended, app), app.app_context():
        for what in ("fail", "write", "nothing"):
            act.enqueue(what)
        done = jobs.run(raise_errors=False)
    assert [job.args for job in done if job.task == alert.name] == [
        ["failed"],
        ["succeeded"],
        ["succeeded"],
    ]


def test_a_receiver_that_fails_changes_nothing_about_the_job(
    app: Flask, litestack: Litestack, jobs: JobTester, caplog: pytest.LogCaptureFixture
) -> None:
    runs: list[int] = []

    @litestack.task
    def act() -> None:
        runs.append(1)

    def receiver(sender: Flask, **about: Any) -> None:
        litestack.db.session.add(Post(title="half done"))
        raise RuntimeError("receiver")

    with (
        signals.job_started.connected_to(receiver, app),
        signals.job_ended.connected_to(receiver, app),
        app.app_context(),
    ):
        act.enqueue()
        (job,) = jobs.run()
    assert (job.state, job.failures, runs) == ("succeeded", 0, [1])
    assert "a receiver of litestack-job-ended failed" in caplog.text
    assert titles(app, litestack) == ["First"]


def test_a_teardown_function_that_fails_leaves_the_write_lock_free(
    app: Flask, litestack: Litestack, jobs: JobTester
) -> None:
    @app.teardown_appcontext
    def teardown(error: BaseException | None) -> None:
        if current_job() is not None:
            raise RuntimeError("teardown")

    @litestack.task(retries=0)
    def act() -> None:
        litestack.db.session.add(Post(title="failed"))
        litestack.db.session.flush()
        raise ValueError

    with app.app_context():
        act.enqueue()
    (job,) = jobs.run(raise_errors=False)
    assert job.state == "failed"
    assert errors(app, litestack, job.id) == ["ValueError"]
    assert titles(app, litestack) == ["First"]


def test_a_retry_policy_that_fails_fails_the_job(
    app: Flask, litestack: Litestack, jobs: JobTester
) -> None:
    class Broken(RetryPolicy):
        def retries(self, error: BaseException) -> bool:
            raise KeyError("broken")

    @litestack.task(retries=Broken())
    def act() -> None:
        raise ValueError("no")

    with app.app_context():
        act.enqueue()
    (job,) = jobs.run(raise_errors=False)
    assert job.state == "failed"
    with app.app_context():
        (attempt,) = litestack.jobs.attempts(job.id)
    assert attempt.error == "KeyError: 'broken'"
    assert "ValueError: no" in attempt.traceback

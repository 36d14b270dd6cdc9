from __future__ import annotations

import math
import os
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import select

from flask_litestack import ConfigError, JobStateError, Litestack
from flask_litestack.errors import ArgumentsError
from flask_litestack.jobs import Job, Task
from flask_litestack.jobs.queue import hint, read_hint
from flask_litestack.process.wakeup import Mailbox

from ..conftest import Post


@pytest.fixture
def send(litestack: Litestack) -> Task[[int], None]:
    @litestack.task
    def send(user_id: int) -> None:
        pass

    return send


def committed(litestack: Litestack) -> list[list[Any]]:
    """The arguments of the jobs that everybody can see."""
    if not litestack.jobs.is_used():
        return []
    connection = litestack.jobs.connect()
    try:
        rows = connection.execute("SELECT arguments FROM litestack_jobs ORDER BY id").fetchall()
    finally:
        connection.close()
    return [row[0] for row in rows]


# -- enqueue ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("context")
def test_a_job_is_stored_and_can_be_read(litestack: Litestack, send: Task[[int], None]) -> None:
    job = send.enqueue(7)
    assert isinstance(job, Job)
    assert litestack.jobs.get(job.id) == job
    assert (job.state, job.args, job.kwargs, job.queue) == ("queued", [7], {}, "default")
    assert abs((job.created_at - datetime.now(UTC)).total_seconds()) < 5
    assert litestack.jobs.get(job.id + 1) is None


def test_calling_a_task_runs_it(litestack: Litestack) -> None:
    @litestack.task(queue="mail")
    def add(a: int, b: int = 2) -> int:
        return a + b

    assert add(1) == 3
    assert add.__name__ == "add"


@pytest.mark.usefixtures("context")
def test_options_of_a_single_job(litestack: Litestack, send: Task[[int], None]) -> None:
    soon = datetime.now(UTC) + timedelta(hours=1)
    job = send.using(queue="mail", priority=5, run_after=soon).enqueue(1)
    assert (job.queue, job.priority, job.state) == ("mail", 5, "scheduled")
    assert abs(job.run_at - soon) < timedelta(milliseconds=1)
    assert send.using(run_after=timedelta(hours=1)).enqueue(1).state == "scheduled"
    assert send.using(run_after=-1).enqueue(1).state == "queued"
    assert send.enqueue(1).queue == "default"  # the task itself is unchanged


def test_wrong_options_are_refused(send: Task[[int], None]) -> None:
    with pytest.raises(ValueError, match="aware"):
        send.using(run_after=datetime(2030, 1, 1))
    with pytest.raises(ConfigError, match="'a,b' cannot be the name of a queue"):
        send.using(queue="a,b")
    wrong: Any
    for wrong in (-1, "3", 1.5):
        with pytest.raises(ValueError, match="retries= is a number of at least 0"):
            send.using(retries=wrong)
    for wrong in (1.5, "high", 2**63):
        with pytest.raises(ConfigError, match="priority= is a whole number"):
            send.using(priority=wrong)
    for wrong in (time.time() * 1000, math.inf, math.nan, timedelta.max, "soon"):
        with pytest.raises(ValueError, match=r"run_after= is a number of seconds"):
            send.using(run_after=wrong)


@pytest.mark.usefixtures("context")
def test_a_moment_that_python_cannot_name_does_not_keep_the_jobs_from_being_listed(
    litestack: Litestack, send: Task[[int], None]
) -> None:
    last = datetime.max.replace(tzinfo=UTC)
    assert send.using(run_after=last).enqueue(1).run_at == last
    connection = litestack.jobs.connect()
    connection.execute("UPDATE litestack_jobs SET run_at = 9e999, created_at = -9e999")
    connection.close()
    (job,) = litestack.jobs.list()
    assert (job.run_at, job.created_at) == (last, datetime.min.replace(tzinfo=UTC))


@pytest.mark.usefixtures("context")
def test_arguments_that_do_not_fit_are_refused_at_once(send: Any) -> None:
    for args, kwargs in [((), {}), ((1, 2), {}), ((1,), {"x": 2}), ((), {"user": 1})]:
        with pytest.raises(ArgumentsError, match=r"send\(user_id: 'int'\) -> 'None' cannot be"):
            send.enqueue(*args, **kwargs)
    assert send.enqueue(user_id=1).kwargs == {"user_id": 1}


@pytest.mark.usefixtures("context")
def test_many_calls_at_once(litestack: Litestack, send: Task[[int], None]) -> None:
    assert litestack.jobs.enqueue_many(send.call(n) for n in range(1000)) == 1000
    assert litestack.jobs.counts()["queued"] == 1000
    with pytest.raises(ArgumentsError):
        litestack.jobs.enqueue_many(send.call(n) for n in [1, object()])  # type: ignore[arg-type]
    assert litestack.jobs.counts()["queued"] == 1000
    assert litestack.jobs.enqueue_many([]) == 0


def test_outside_an_app_context(send: Task[[int], None]) -> None:
    with pytest.raises(RuntimeError, match="application context"):
        send.enqueue(1)


# -- whose transaction ------------------------------------------------------------------------


@pytest.mark.usefixtures("context")
def test_after_a_read_a_job_is_stored_at_once(
    litestack: Litestack, send: Task[[int], None]
) -> None:
    post = litestack.db.session.get(Post, 1)
    assert post is not None
    send.enqueue(1)
    assert committed(litestack) == ["[[1]]"]
    assert "title" in post.__dict__  # nothing loaded expires


@pytest.mark.usefixtures("context")
def test_with_pending_changes_it_belongs_to_the_transaction(
    litestack: Litestack, send: Task[[int], None]
) -> None:
    session = litestack.db.session
    session.add(Post(title="new"))
    send.enqueue(1)
    assert committed(litestack) == []
    session.rollback()
    assert committed(litestack) == []
    session.add(Post(title="new"))
    send.enqueue(2)
    session.commit()
    assert committed(litestack) == ["[[2]]"]
    assert session.scalars(select(Post.title)).all() == ["First", "new"]


@pytest.mark.usefixtures("context")
def test_with_an_uncommitted_write_too(litestack: Litestack, send: Task[[int], None]) -> None:
    session = litestack.db.session
    session.add(Post(title="new"))
    session.flush()
    send.enqueue(1)
    litestack.jobs.enqueue_many([send.call(2)])
    session.rollback()
    assert committed(litestack) == []


@pytest.mark.usefixtures("context")
def test_in_write_and_in_begin(litestack: Litestack, send: Task[[int], None]) -> None:
    with suppress(ZeroDivisionError), litestack.db.write():
        send.enqueue(1)
        raise ZeroDivisionError
    with litestack.db.write():
        send.enqueue(2)
    with suppress(ZeroDivisionError), litestack.db.session.begin():
        send.enqueue(3)
        raise ZeroDivisionError
    with litestack.db.session.begin():
        send.enqueue(4)
    assert committed(litestack) == ["[[2]]", "[[4]]"]


@pytest.mark.usefixtures("context")
def test_a_savepoint_takes_its_jobs_with_it(litestack: Litestack, send: Task[[int], None]) -> None:
    session = litestack.db.session
    with session.begin():
        send.enqueue(1)
        with suppress(ZeroDivisionError), session.begin_nested():
            send.enqueue(2)
            raise ZeroDivisionError
        with session.begin_nested():
            send.enqueue(3)
    assert committed(litestack) == ["[[1]]", "[[3]]"]


@pytest.mark.usefixtures("context")
def test_the_first_job_of_all_in_a_transaction_that_is_rolled_back(
    litestack: Litestack, send: Task[[int], None]
) -> None:
    """The tables are made in the transaction, and again in the next."""
    with suppress(ZeroDivisionError), litestack.db.write():
        send.enqueue(1)
        raise ZeroDivisionError
    send.enqueue(2)
    assert committed(litestack) == ["[[2]]"]


@pytest.mark.usefixtures("context")
def test_after_commit_waits_in_any_case(litestack: Litestack, send: Task[[int], None]) -> None:
    send.using(after_commit=True).enqueue(1)
    assert committed(litestack) == []
    litestack.db.session.commit()
    assert committed(litestack) == ["[[1]]"]


@pytest.mark.usefixtures("context")
def test_a_worker_is_woken_only_by_the_commit(
    litestack: Litestack, send: Task[[int], None]
) -> None:
    send.enqueue(0)
    mailbox = Mailbox(litestack.jobs.run_path, "jobs")
    send.enqueue(1)
    assert mailbox.wait(0)
    with litestack.db.write() as session:
        send.enqueue(2)
        with suppress(ZeroDivisionError), session.begin_nested():
            send.enqueue(3)
            raise ZeroDivisionError
        assert not mailbox.wait(0)
    assert mailbox.wait(0)
    litestack.db.session.add(Post(title="x"))
    send.enqueue(4)
    litestack.db.session.rollback()
    assert not mailbox.wait(0)
    mailbox.close()


def test_an_adopted_flask_sqlalchemy_is_joined(tmp_path: Path) -> None:
    db = SQLAlchemy()

    class Note(db.Model):  # type: ignore[name-defined,misc]
        id = db.Column(db.Integer, primary_key=True)

    app = Flask("adopted")
    app.config["SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{tmp_path / 'app.sqlite3'}"
    app.config["LITESTACK_DATA_PATH"] = tmp_path
    db.init_app(app)
    litestack = Litestack(db=db)
    litestack.init_app(app)

    @litestack.task
    def send(n: int) -> None:
        pass

    with app.app_context():
        db.create_all()
        send.enqueue(1)
        db.session.add(Note())
        send.enqueue(2)
        db.session.rollback()
        db.session.add(Note())
        send.enqueue(3)
        db.session.commit()
        assert committed(litestack) == ["[[1]]", "[[3]]"]
        db.session.remove()
        db.engine.dispose()


def test_another_database_than_sqlite_is_refused(tmp_path: Path) -> None:
    db = SQLAlchemy()
    app = Flask("adopted")
    app.config["SQLALCHEMY_DATABASE_URI"] = "postgresql+psycopg://localhost/nothing"
    app.config["LITESTACK_DATA_PATH"] = tmp_path
    db.init_app(app)
    litestack = Litestack(db=db)
    litestack.init_app(app)

    @litestack.task
    def send() -> None:
        pass

    with app.app_context(), pytest.raises(ConfigError, match="postgresql, not SQLite: jobs"):
        send.enqueue()


@pytest.mark.usefixtures("context")
def test_a_forked_process_enqueues_on_connections_of_its_own(
    litestack: Litestack, send: Task[[int], None]
) -> None:
    send.enqueue(1)
    pid = os.fork()
    if pid == 0:
        try:
            send.enqueue(2)
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    send.enqueue(3)
    assert committed(litestack) == ["[[1]]", "[[2]]", "[[3]]"]


# -- unique -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("context")
def test_an_equal_unique_job_is_not_enqueued_twice(litestack: Litestack) -> None:
    @litestack.task(unique="queued")
    def build(n: int) -> None:
        pass

    first = build.enqueue(1)
    second = build.enqueue(1)
    assert second.id == first.id
    assert (first.new, second.new) == (True, False)
    assert build.enqueue(2).new
    assert litestack.jobs.enqueue_many([build.call(1), build.call(3), build.call(3)]) == 1
    litestack.jobs.cancel(first.id)
    assert build.enqueue(1).new


@pytest.mark.usefixtures("context")
def test_equal_are_the_arguments_however_they_are_given(litestack: Litestack) -> None:
    missing = object()

    @litestack.task(unique="queued")
    def build(a: int, b: int = 2, c: Any = missing, *rest: int, **more: Any) -> None:
        pass

    first = build.enqueue(1)
    same = [
        build.enqueue(1, 2),
        build.enqueue(1, b=2),
        build.enqueue(b=2, a=1),
        build.enqueue(a=1),
    ]
    assert {job.id for job in same} == {first.id}
    assert first.args == [1]  # stored as they were given
    assert build.enqueue(1, 3).new
    assert build.enqueue(1, True).new
    assert build.enqueue(1, x={"p": 1, "q": 2}, y=1).new
    assert not build.enqueue(1, y=1, x={"q": 2, "p": 1}).new


@pytest.mark.usefixtures("context")
def test_a_unique_key_of_ones_own(litestack: Litestack, send: Task[[int], None]) -> None:
    first = send.using(unique_key="u7").enqueue(1)
    assert send.using(unique_key="u7", run_after=60).enqueue(2).id == first.id
    assert send.using(unique_key="u8").enqueue(2).new
    assert send.enqueue(1).new

    @litestack.task
    def other() -> None:
        pass

    assert other.using(unique_key="u7").enqueue().new  # keys are of one task


@pytest.mark.usefixtures("context")
def test_unique_in_a_transaction(litestack: Litestack, send: Task[[int], None]) -> None:
    with litestack.db.write():
        first = send.using(unique_key="a").enqueue(1)
        assert send.using(unique_key="a").enqueue(1).id == first.id
    assert len(committed(litestack)) == 1


# -- hold, stop, repeat -----------------------------------------------------------------------


@pytest.mark.usefixtures("context")
def test_cancel(litestack: Litestack, send: Task[[int], None]) -> None:
    job = send.enqueue(1)
    assert litestack.jobs.cancel(job.id).state == "cancelled"
    with pytest.raises(JobStateError, match="has cancelled; there is nothing to cancel"):
        litestack.jobs.cancel(job.id)
    with pytest.raises(JobStateError, match="there is no job 99"):
        litestack.jobs.cancel(99)
    counts = litestack.jobs.counts()
    assert {state for state, count in counts.items() if count} == {"cancelled"}


@pytest.mark.usefixtures("context")
def test_retry(litestack: Litestack, send: Task[[int], None]) -> None:
    job = send.enqueue(1)
    with pytest.raises(JobStateError, match="is queued; only a failed"):
        litestack.jobs.retry(job.id)
    litestack.jobs.cancel(job.id)
    assert litestack.jobs.retry(job.id).state == "queued"


@pytest.mark.usefixtures("context")
def test_retry_of_all_reports_those_that_an_equal_job_keeps_out(
    litestack: Litestack, send: Task[[int], None]
) -> None:
    jobs = [send.using(unique_key=str(n)).enqueue(n) for n in range(3)]
    connection = litestack.jobs.connect()
    connection.execute("UPDATE litestack_jobs SET state = 'failed'")
    connection.close()
    again = send.using(unique_key="1").enqueue(1)
    assert again.new
    assert litestack.jobs.retry_failed() == (2, [jobs[1].id])
    with pytest.raises(JobStateError, match=r"another job with the unique key '.*:1'"):
        litestack.jobs.retry(jobs[1].id)
    assert litestack.jobs.counts()["queued"] == 3


@pytest.mark.usefixtures("context")
def test_delete(litestack: Litestack, send: Task[[int], None]) -> None:
    job = send.enqueue(1)
    litestack.jobs.delete(job.id)
    assert litestack.jobs.get(job.id) is None
    with pytest.raises(JobStateError, match="no job"):
        litestack.jobs.delete(job.id)
    assert send.enqueue(2).id > job.id  # ids are never used twice


@pytest.mark.usefixtures("context")
def test_pause_and_the_queues(litestack: Litestack, send: Task[[int], None]) -> None:
    send.enqueue(1)
    send.using(queue="mail").enqueue(1)
    litestack.jobs.pause("mail")
    litestack.jobs.pause("mail")
    queues = {queue.name: queue for queue in litestack.jobs.queues()}
    assert queues["default"].paused_at is None
    assert queues["mail"].paused_at is not None
    assert queues["mail"].queued == 1
    assert litestack.jobs.resume("mail")
    assert not litestack.jobs.resume("mail")


@pytest.mark.usefixtures("context")
def test_list_is_newest_first_and_by_pages(litestack: Litestack, send: Task[[int], None]) -> None:
    ids = [send.enqueue(n).id for n in range(5)]
    page = litestack.jobs.list(limit=2)
    assert [job.id for job in page] == [ids[4], ids[3]]
    page = litestack.jobs.list(limit=9, before=ids[3])
    assert [job.id for job in page] == [ids[2], ids[1], ids[0]]
    assert litestack.jobs.list(queue="mail") == []
    assert litestack.jobs.list(state="failed") == []


# -- declare ----------------------------------------------------------------------------------


def test_a_name_belongs_to_one_task(litestack: Litestack) -> None:
    litestack.task(name="x")(lambda: None)
    with pytest.raises(ConfigError, match="two tasks are called x"):
        litestack.task(name="x")(print)


def test_a_factory_that_runs_twice_declares_the_same_task() -> None:
    litestack = Litestack()

    def create() -> None:
        @litestack.task
        def local() -> None:
            pass

    create()
    create()
    assert len(litestack.jobs.tasks) == 1


def test_declarations_that_make_no_sense(litestack: Litestack) -> None:
    def takes_one(n: int) -> None:
        pass

    with pytest.raises(ConfigError, match="cron=, which calls it without arguments"):
        litestack.task(cron="* * * * *")(takes_one)
    with pytest.raises(ConfigError, match="not a cron expression"):
        litestack.task(cron="soon")(takes_one)
    wrong: Any
    for wrong in (0, -1, "5", math.nan):
        with pytest.raises(ConfigError, match=r"task .*takes_one: timeout="):
            litestack.task(timeout=wrong)(takes_one)
    for wrong in ("3", -1, 1.5):
        with pytest.raises(ConfigError, match=r"task .*takes_one: retries="):
            litestack.task(retries=wrong)(takes_one)
    with pytest.raises(ConfigError, match=r"priority= is a whole number, not 'high'"):
        litestack.task(priority="high")(takes_one)  # type: ignore[call-overload]
    with pytest.raises(ConfigError, match="unique="):
        litestack.task(unique=True)(takes_one)  # type: ignore[call-overload]
    with pytest.raises(ConfigError, match="cannot be the name of a queue"):
        litestack.task(queue="*")(takes_one)


def test_nothing_is_created_before_the_first_use(tmp_path: Path) -> None:
    litestack = Litestack()
    app = Flask("idle")
    app.config["LITESTACK_DATA_PATH"] = tmp_path / "data"
    litestack.init_app(app)
    litestack.task(cron="* * * * *")(lambda: None)
    assert not (tmp_path / "data").exists()
    with app.app_context():
        assert not litestack.jobs.is_used()
    assert not (tmp_path / "data" / "data.sqlite3").exists()


def test_a_hint_names_a_job_and_any_other_note_means_any() -> None:
    assert read_hint(hint(4711)) == 4711
    notes = (hint(0), b"\0", b"\1", b"\x007 of default", b"\x00-7", b"7", b"")
    assert {read_hint(note) for note in notes} == {0}

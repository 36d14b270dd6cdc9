from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from flask import Flask

from flask_litestack import Litestack
from flask_litestack.jobs import Retry, current_job
from flask_litestack.jobs.batch import LARGEST, BatchSize
from flask_litestack.jobs.worker import Worker
from tests.conftest import Model, Post

from .working import state, until, working


@pytest.mark.usefixtures("context")
def test_a_running_job_hears_that_it_is_cancelled(app: Flask, litestack: Litestack) -> None:
    @litestack.task
    def long() -> None:
        for _ in range(1000):
            time.sleep(0.01)
            current_job().check()  # type: ignore[union-attr]

    with working(app, litestack):
        job = long.enqueue()
        until(lambda: litestack.jobs.workers()[0].running)
        (running,) = litestack.jobs.workers()[0].running
        assert (running.id, running.task) == (job.id, long.name)
        assert litestack.jobs.cancel(job.id).cancel_requested
        until(lambda: state(litestack, job) == "cancelled")


@pytest.mark.usefixtures("context")
def test_short_jobs_do_not_wait_for_slow_ones(app: Flask, litestack: Litestack) -> None:
    """What was claimed ahead is put back when no thread gets to it."""
    release = threading.Event()

    @litestack.task
    def quick(n: int) -> None:
        pass

    @litestack.task
    def slow() -> None:
        release.wait(20)

    with working(app, litestack, threads=1) as first:
        for n in range(200):
            quick.enqueue(n)
        until(lambda: litestack.jobs.counts()["succeeded"] == 200)
        assert first._batch.size(1) > 10  # it claims ahead by now
        litestack.jobs.enqueue_many([slow.call(), *(quick.call(n) for n in range(20))])
        try:
            with working(app, litestack, threads=1):
                until(lambda: litestack.jobs.counts()["succeeded"] == 220)
            assert litestack.jobs.counts()["running"] == 1
        finally:
            release.set()
        until(lambda: litestack.jobs.counts()["succeeded"] == 221)


def test_what_cannot_be_put_back_now_is_put_back_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Jobs claimed ahead behind one that has the write lock for longer than we wait for it."""
    release = threading.Event()
    litestack = Litestack(metadata=Model.metadata)
    app = Flask("shop")
    app.config["LITESTACK_DATA_PATH"] = tmp_path / "data"
    app.config["LITESTACK_BUSY_TIMEOUT"] = 0.1
    litestack.init_app(app)

    @litestack.task
    def quick(n: int) -> None:
        pass

    @litestack.task
    def slow() -> None:
        litestack.db.session.add(Post(title="slow"))
        litestack.db.session.flush()
        release.wait(20)

    with app.app_context():
        litestack.db.create_all()
        with working(app, litestack, threads=1):
            for n in range(200):
                quick.enqueue(n)
            until(lambda: litestack.jobs.counts()["succeeded"] == 200)
            litestack.jobs.enqueue_many([slow.call(), *(quick.call(n) for n in range(20))])
            try:
                until(lambda: "cannot claim or acknowledge jobs" in caplog.text)
            finally:
                release.set()
            until(lambda: litestack.jobs.counts()["succeeded"] == 221)
        litestack.db.close_session()
        litestack.db.engine.dispose()


@pytest.mark.usefixtures("context")
def test_pause_and_resume(app: Flask, litestack: Litestack) -> None:
    @litestack.task(queue="mail")
    def send() -> None:
        pass

    with working(app, litestack):
        litestack.jobs.pause("mail")
        job = send.enqueue()
        time.sleep(0.1)
        assert state(litestack, job) == "queued"
        litestack.jobs.resume("mail")
        until(lambda: state(litestack, job) == "succeeded")


@pytest.mark.usefixtures("context")
def test_a_worker_takes_only_from_its_queues(app: Flask, litestack: Litestack) -> None:
    @litestack.task
    def act() -> None:
        pass

    with working(app, litestack, queues=["a"]):
        other = act.enqueue()
        mine = act.using(queue="a").enqueue()
        until(lambda: state(litestack, mine) == "succeeded")
        assert state(litestack, other) == "queued"


@pytest.mark.usefixtures("context")
def test_a_scheduled_job_that_comes_first_is_not_slept_through(
    app: Flask, litestack: Litestack
) -> None:
    @litestack.task
    def act() -> None:
        pass

    with working(app, litestack):
        act.using(run_after=60).enqueue()
        soon = act.using(run_after=0.2).enqueue()
        began = time.monotonic()
        until(lambda: state(litestack, soon) == "succeeded")
        assert time.monotonic() - began < 2


@pytest.mark.usefixtures("context")
def test_a_worker_that_stops_leaves_nothing_behind(app: Flask, litestack: Litestack) -> None:
    @litestack.task
    def act() -> None:
        pass

    with working(app, litestack):
        act.enqueue()
    assert litestack.jobs.workers() == []
    left = [path.name for path in litestack.jobs.run_path.iterdir()]
    assert not [name for name in left if name.partition("-")[0] in ("worker", "jobs", "control")]
    assert not [t for t in threading.enumerate() if t.name.startswith("litestack-job")]


@pytest.mark.usefixtures("context")
def test_a_worker_that_could_not_begin_has_no_stuck_jobs(app: Flask, litestack: Litestack) -> None:
    run_path = litestack.jobs.run_path
    worker = Worker(app, litestack.jobs, queues=["*"], threads=2)
    run_path.rename(run_path.with_name("away"))
    run_path.touch()
    with pytest.raises(OSError, match="run"):
        worker.run()
    assert not worker.has_stuck_jobs
    assert worker.progress.succeeded == 0


@pytest.mark.usefixtures("context")
def test_drain_runs_what_jobs_enqueue_too(app: Flask, litestack: Litestack) -> None:
    @litestack.task
    def count_down(n: int) -> None:
        if n:
            count_down.enqueue(n - 1)

    count_down.enqueue(20)
    worker = Worker(app, litestack.jobs, queues=["*"], threads=2, drain=True)
    assert worker.run() == 0
    assert worker.progress.succeeded == 21


def test_batches_grow_with_short_jobs_and_shrink_with_long_ones() -> None:
    batch = BatchSize()
    assert batch.size(4) == 4
    for _ in range(100):
        batch.learn(0.00005, 0.00004)
    assert batch.size(4) == LARGEST
    for _ in range(30):
        batch.learn(10.0, 0.01)
    assert batch.size(4) <= 5


@pytest.mark.usefixtures("context")
def test_what_is_put_back_is_run_by_another_worker_at_once(
    app: Flask, litestack: Litestack
) -> None:
    """It has been told of these jobs before, and has found them taken."""
    release = threading.Event()

    @litestack.task
    def quick(n: int) -> None:
        pass

    @litestack.task
    def slow() -> None:
        release.wait(20)

    with working(app, litestack, threads=1), working(app, litestack, threads=1):
        for n in range(200):
            quick.enqueue(n)
        until(lambda: litestack.jobs.counts()["succeeded"] == 200)
        began = time.monotonic()
        try:
            for turn in range(1, 5):
                release.clear()
                litestack.jobs.enqueue_many([slow.call(), *(quick.call(n) for n in range(20))])
                until(lambda done=200 + 21 * turn: litestack.jobs.counts()["succeeded"] >= done - 1)
                release.set()
                until(lambda done=200 + 21 * turn: litestack.jobs.counts()["succeeded"] == done)
        finally:
            release.set()
        assert time.monotonic() - began < 3  # rather than the 5 s to the next sweep


@pytest.mark.usefixtures("context")
def test_workers_without_a_free_thread_leave_a_job_to_one_that_has(
    app: Flask, litestack: Litestack
) -> None:
    release = threading.Event()

    @litestack.task
    def quick(n: int) -> None:
        pass

    @litestack.task
    def slow() -> None:
        release.wait(60)

    with ExitStack() as workers:
        for _ in range(4):
            workers.enter_context(working(app, litestack, threads=1))
        try:
            for count in (1, 2, 3):
                slow.enqueue()
                until(lambda n=count: sum(len(w.running) for w in litestack.jobs.workers()) == n)
                time.sleep(0.05)
            began = time.monotonic()
            for n in range(12):
                job = quick.enqueue(n)
                until(lambda job=job: state(litestack, job) == "succeeded")
                time.sleep(0.05)
            assert time.monotonic() - began < 3  # rather than the 5 s to the next sweep
        finally:
            release.set()


@pytest.mark.usefixtures("context")
def test_another_attempt_at_once_is(app: Flask, litestack: Litestack) -> None:
    moments: list[float] = []

    @litestack.task
    def act() -> None:
        moments.append(time.monotonic())
        if len(moments) == 1:
            raise Retry(delay=0)

    with working(app, litestack):
        time.sleep(0.1)
        job = act.enqueue()
        until(lambda: state(litestack, job) == "succeeded")
    assert moments[1] - moments[0] < 2


@pytest.mark.usefixtures("context")
def test_suspects_of_a_crash_are_run_one_after_the_other_without_a_pause(
    app: Flask, litestack: Litestack
) -> None:
    @litestack.task
    def act(n: int) -> None:
        pass

    for n in range(4):
        act.enqueue(n)
    with litestack.jobs.connect() as connection:
        connection.execute("UPDATE litestack_jobs SET crashes = 1")
    connection.close()
    began = time.monotonic()
    with working(app, litestack):
        until(lambda: litestack.jobs.counts()["succeeded"] == 4)
    assert time.monotonic() - began < 3

"""A worker as a process: how it stops, waits, and gets rid of what does not end."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import func, select
from sqlalchemy.exc import OperationalError

from flask_litestack.jobs.job import Job

from . import jobs_app
from .jobs_app import Row, litestack
from .workers import Box, box_at, wait_until


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    with box_at(tmp_path / "data") as box:
        yield box


def get(job: Job) -> Job:
    found = litestack.jobs.get(job.id)
    assert found is not None
    return found


def test_sigterm_lets_a_running_job_end(box: Box) -> None:
    process = box.start()
    job = jobs_app.wait_for.enqueue(1, 1.0)
    box.wait_for("waiting-1")
    assert box.stop(process) == 0
    assert get(job).state == "succeeded"
    assert box.rows() == [1]
    left = os.listdir(box.folder / "run")
    assert not [name for name in left if name.startswith(("worker-", "jobs-", "control-"))]


def test_sigterm_puts_a_job_back_that_takes_too_long(box: Box) -> None:
    process = box.start(FLASK_LITESTACK_JOBS_GRACE="0.3")
    job = jobs_app.wait_for.enqueue(1, 30.0)
    box.wait_for("waiting-1")
    began = time.monotonic()
    assert box.stop(process) == 0
    assert time.monotonic() - began < 10
    assert (get(job).state, get(job).crashes, get(job).failures) == ("queued", 0, 0)
    assert box.rows() == []


def test_a_second_sigterm_is_quicker(box: Box) -> None:
    process = box.start(FLASK_LITESTACK_JOBS_GRACE="60")
    job = jobs_app.wait_for.enqueue(1, 60.0)
    box.wait_for("waiting-1")
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    began = time.monotonic()
    assert box.stop(process) == 0
    assert time.monotonic() - began < 15
    assert get(job).state == "queued"


def test_workers_end_when_the_process_that_started_them_is_killed(box: Box) -> None:
    process = box.start()
    (worker,) = box.worker_pids()
    assert worker != process.pid
    process.kill()
    process.wait()
    wait_until(lambda: not box.worker_pids(), "the worker has noticed")


def test_two_workers_enqueue_a_cron_slot_once(box: Box) -> None:
    box.start("--processes", "2", wait=2, EVERY_SECOND="1")
    time.sleep(4.5)
    count = litestack.db.session.scalar(select(func.count()).select_from(Row))
    assert count in (3, 4, 5)
    connection = litestack.db.connect()
    slots = connection.execute(
        "SELECT CAST(created_at AS INTEGER), COUNT(*) FROM litestack_jobs GROUP BY 1"
    ).fetchall()
    connection.close()
    assert all(number == 1 for _, number in slots)


def test_a_scheduled_job_starts_at_its_time(box: Box) -> None:
    box.start()
    job = jobs_app.insert.using(run_after=1.0).enqueue(1)
    assert job.state == "scheduled"
    box.wait_until_done()
    after = get(job)
    assert after.started_at is not None
    assert 0 <= (after.started_at - after.run_at).total_seconds() < 0.5


def test_a_spinning_job_gets_its_timeout_as_an_exception(box: Box) -> None:
    box.start()
    job = jobs_app.spin.enqueue()
    box.wait_until_done()
    assert get(job).state == "failed"
    (attempt,) = litestack.jobs.attempts(job.id)
    assert attempt.error.startswith("flask_litestack.errors.JobTimeout")
    assert "in spin" in attempt.traceback
    jobs_app.insert.enqueue(1)
    box.wait_until_done()
    assert box.rows() == [1]


@pytest.mark.parametrize("task", ["stuck", "stuck_with_the_lock"])
def test_a_job_that_hangs_ends_with_its_process(box: Box, task: str) -> None:
    box.start(FLASK_LITESTACK_BUSY_TIMEOUT="1", FLASK_LITESTACK_JOBS_GRACE="1")
    (before,) = box.worker_pids()
    job = getattr(jobs_app, task).enqueue()
    box.wait_until_done(40)
    assert get(job).state == "failed"
    assert "JobTimeout" in litestack.jobs.attempts(job.id)[0].error
    jobs_app.insert.enqueue(2)
    box.wait_until_done()
    assert box.rows() == [2]
    assert box.worker_pids() != [before]


def test_a_job_that_holds_the_write_lock_for_long(tmp_path: Path) -> None:
    """Others wait for a bounded time, are told who it is, and no job is lost."""
    with box_at(tmp_path / "data", FLASK_LITESTACK_BUSY_TIMEOUT="1") as box:
        hold_the_lock(box)


def hold_the_lock(box: Box) -> None:
    box.start()
    for n in range(2, 12):
        jobs_app.insert.using(run_after=0.5).enqueue(n)
    jobs_app.hold_the_lock.enqueue(1, 4.0)
    box.wait_for("waiting-1")
    litestack.db.session.add(Row(n=0, at=0.0, pid=0))
    began = time.monotonic()
    with pytest.raises(OperationalError, match=r"job \d+ .*hold_the_lock.*has held it for"):
        litestack.db.session.commit()
    litestack.db.session.rollback()
    assert time.monotonic() - began < 3
    box.wait_until_done()
    assert sorted(box.rows()) == list(range(1, 12))
    assert litestack.jobs.counts()["succeeded"] == 11
    assert "hold_the_lock held the write lock" in box.output()


def test_a_failed_attempt_leaves_nothing_and_is_repeated_at_its_time(box: Box) -> None:
    box.start()
    job = jobs_app.fail_once.enqueue(1)
    began = time.monotonic()
    box.wait_until_done()
    assert time.monotonic() - began < 3  # after 0.1 s, not at the next sweep
    assert (get(job).state, get(job).failures) == ("succeeded", 1)
    assert box.rows() == [1]


def test_a_task_that_only_a_newer_release_knows_waits(box: Box) -> None:
    older = box.start()
    connection = litestack.jobs.connect()
    connection.execute(
        "INSERT INTO litestack_jobs (state, queue, priority, task, arguments, created_at, run_at) "
        "VALUES ('queued', 'default', 0, 'newer', '[[]]', 1, 1)"
    )
    connection.close()
    litestack.jobs.resume("default")  # wakes the worker
    wait_until(lambda: litestack.jobs.counts()["scheduled"] == 1, "it is put back")
    (job,) = litestack.jobs.list()
    assert (job.state, job.failures) == ("scheduled", 0)
    assert "declares the task newer" in litestack.jobs.attempts(job.id)[0].error
    assert box.stop(older) == 0
    box.start(NEWER="1")
    wait_until(lambda: box.rows() == [1], "the newer worker has run it", 30)


def test_drain_ends_when_nothing_is_left(box: Box) -> None:
    litestack.jobs.enqueue_many(jobs_app.insert.call(n) for n in range(50))
    jobs_app.insert.using(run_after=3600).enqueue(99)
    process = box.start("--drain", wait=0)
    assert process.wait(30) == 0
    assert len(box.rows()) == 50
    assert "50 jobs succeeded, 0 failed" in box.output()


def test_several_processes_drain_together(box: Box) -> None:
    litestack.jobs.enqueue_many(jobs_app.insert.call(n) for n in range(50))
    assert box.start("--drain", "--processes", "2", wait=0).wait(30) == 0
    assert sorted(box.rows()) == list(range(50))
    jobs_app.fail.enqueue(1)
    assert box.start("--drain", "--processes", "2", wait=0).wait(30) == 1


def test_a_job_finds_the_only_worker_of_its_queue_at_once(box: Box) -> None:
    for queue in ("mail", "a", "b", "c"):
        box.start("--queues", queue)
    late = []
    for n in range(10):
        job = jobs_app.insert.using(queue="mail").enqueue(n)
        began = time.monotonic()
        wait_until(lambda job=job: get(job).state == "succeeded", "it is done", 10)  # type: ignore[misc]
        late.append(time.monotonic() - began)
    assert max(late) < 3  # less than a sweep


def test_a_process_that_a_job_forks_can_be_terminated(box: Box) -> None:
    box.start()
    jobs_app.terminate_a_child.enqueue(1)
    box.wait_until_done(20)
    assert box.rows() == [-signal.SIGTERM]


def test_what_a_worker_leaves_that_was_killed_with_nothing_to_do_is_removed(box: Box) -> None:
    box.start()
    (name,) = (box.folder / "run").glob("*.work")
    box.kill_worker()
    wait_until(lambda: not name.exists(), "the next one has removed it")


def test_an_unusable_database_ends_the_command_with_a_reason(box: Box) -> None:
    connection = litestack.jobs.connect()
    connection.execute("UPDATE litestack_schema SET version = 99, readable_from = 99")
    connection.close()
    process = box.start(wait=0)
    assert process.wait(30) == 1
    assert "Error: the tables of jobs are of version 99" in box.output()


def test_a_stopped_worker_does_not_keep_the_others_from_waking(box: Box) -> None:
    box.start("--processes", "3", wait=3)
    stopped = box.worker_pids()[0]
    os.kill(stopped, signal.SIGSTOP)
    late = []
    for n in range(20):
        job = jobs_app.insert.enqueue(n)
        began = time.monotonic()
        wait_until(lambda job=job: get(job).state == "succeeded", "it is done", 10)  # type: ignore[misc]
        late.append(time.monotonic() - began)
    os.kill(stopped, signal.SIGCONT)
    assert max(late) < 4  # less than a sweep


def test_threads_that_enqueue_while_a_worker_drains_lose_nothing(box: Box) -> None:
    box.start("--processes", "2", wait=2)

    def enqueue(start: int) -> None:
        with box.app.app_context():
            for n in range(start, start + 200):
                jobs_app.insert.enqueue(n)

    threads = [threading.Thread(target=enqueue, args=(i * 200,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    box.wait_until_done()
    assert sorted(box.rows()) == list(range(800))

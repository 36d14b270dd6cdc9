"""Workers are killed at the worst moments: no job is lost, none takes effect twice."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select

from flask_litestack.process.liveness import Life
from flask_litestack.sqlite.file import file_at

from ..servers import TREE, environment
from . import jobs_app
from .jobs_app import Row, litestack
from .workers import Box, box_at, wait_until


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    with box_at(tmp_path / "data") as box:
        yield box


def test_workers_killed_dozens_of_times_write_each_row_once(box: Box) -> None:
    jobs, kills = 12_000, 24
    litestack.jobs.enqueue_many(jobs_app.insert.call(n) for n in range(jobs))
    box.start("--processes", "2", wait=2)
    random.seed(7)
    killed = 0
    while killed < kills and litestack.jobs.counts()["queued"]:
        pids = box.worker_pids()
        if pids:
            try:
                os.kill(random.choice(pids), signal.SIGKILL)
            except ProcessLookupError:
                continue
            killed += 1
        time.sleep(random.uniform(0.05, 0.6))
    box.wait_until_done()
    assert killed >= 12
    # One that ran at three of the kills has failed, as if it had been their cause.
    assert litestack.jobs.counts()["failed"] <= 3
    litestack.jobs.retry_failed()
    box.wait_until_done()
    assert sorted(box.rows()) == list(range(jobs))
    assert litestack.jobs.counts()["succeeded"] == jobs


@pytest.mark.parametrize(
    "point", ["after claim", "after the writes", "before the commit", "after the commit"]
)
def test_a_worker_killed_at_a_named_point(box: Box, point: str) -> None:
    job = jobs_app.crash_at.enqueue(point, 7)
    box.start()
    box.wait_until_done()
    assert box.rows() == [7]
    after = litestack.jobs.get(job.id)
    assert after is not None
    assert after.state == "succeeded"
    assert after.crashes == (0 if point == "after the commit" else 1)
    assert (box.folder / "crash-7.marker").exists()


def test_a_forked_child_does_not_keep_its_killed_worker_alive(box: Box) -> None:
    jobs_app.fork_a_child.enqueue(1)
    box.start()
    box.wait_until_done(15)
    child = int((box.folder / "child.pid").read_text())
    os.kill(child, 0)  # it still sleeps
    os.kill(child, signal.SIGKILL)
    assert box.rows() == [1]


def test_a_killed_job_starts_again_at_once_where_another_worker_lives(box: Box) -> None:
    box.start("--processes", "2", wait=2)
    jobs_app.wait_for.enqueue(1, 1.0)
    box.wait_for("waiting-1")
    (busy,) = [worker for worker in litestack.jobs.workers() if worker.running]
    (box.folder / "waiting-1").unlink()
    os.kill(busy.pid, signal.SIGKILL)
    began = time.monotonic()
    box.wait_for("waiting-1")
    assert time.monotonic() - began < 1.0  # some milliseconds on a quiet machine
    box.wait_until_done()
    assert box.rows() == [1]


def stop_at_rest(pid: int) -> None:
    """Stop a process that does not hold the write lock, for which everybody would wait."""
    queue = file_at(litestack.db.path).queue
    os.kill(pid, signal.SIGSTOP)
    while (holder := queue.holder()) is not None and holder.pid == pid:
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.01)
        os.kill(pid, signal.SIGSTOP)


def test_a_stopped_worker_is_not_dead(box: Box) -> None:
    box.start()
    jobs_app.wait_long_then_note.enqueue(1, 1.0)
    box.wait_for("waiting-1")
    (stopped,) = box.worker_pids()
    stop_at_rest(stopped)
    box.start()
    jobs_app.insert.enqueue(2)
    wait_until(lambda: box.rows() == [2], "the other worker works")
    time.sleep(6)  # longer than a sweep
    job = litestack.jobs.list(task=jobs_app.wait_long_then_note.name)[0]
    assert job.state == "running"
    assert job.crashes == 0
    os.kill(stopped, signal.SIGCONT)
    box.wait_until_done()
    assert box.rows() == [1, 2]


def test_a_worker_taken_for_dead_cannot_store_what_it_did(box: Box) -> None:
    box.start()
    jobs_app.wait_long_then_note.enqueue(1, 1.0)
    box.wait_for("waiting-1")
    worker = litestack.jobs.workers()[0]
    os.kill(worker.pid, signal.SIGSTOP)
    (box.folder / "run" / f"{worker.name}.life").unlink()
    box.start()
    wait_until(lambda: box.rows() == [1], "the other worker has run it")
    os.kill(worker.pid, signal.SIGCONT)
    wait_until(lambda: "claim was lost" in box.output(), "the late end is refused")
    box.wait_until_done()
    assert box.rows() == [1]


@pytest.mark.parametrize("how", ["one by one", "many", "unique"])
def test_a_job_killed_half_way_through_its_children_has_all_of_them_once(
    box: Box, how: str
) -> None:
    jobs_app.parent.enqueue(100, how)
    box.start()
    box.wait_until_done()
    assert sorted(box.rows()) == list(range(100))


def test_a_job_that_kills_its_worker_three_times_has_failed(box: Box) -> None:
    jobs_app.wait_long_then_note.enqueue(1, 2.0)
    job = jobs_app.poison.enqueue()
    for n in range(2, 20):
        jobs_app.insert.enqueue(n)
    box.start()
    box.wait_until_done()
    failed = litestack.jobs.get(job.id)
    assert failed is not None
    assert failed.state == "failed"
    assert failed.crashes == 3
    assert "not tried again" in litestack.jobs.attempts(job.id)[-1].error
    # The innocent that ran beside it have not failed with it.
    assert sorted(box.rows()) == list(range(1, 20))
    assert litestack.jobs.counts()["failed"] == 1


def test_enqueue_commit_kill_leaves_one_job(box: Box) -> None:
    code = (
        "import os, signal\n"
        "from tests.processes.jobs_app import create_app, insert\n"
        "with create_app().app_context():\n"
        "    insert.enqueue(1)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(LITESTACK_DATA_PATH=str(box.folder)),
        cwd=TREE,
        check=False,
    )
    assert process.returncode == -signal.SIGKILL
    box.start()
    box.wait_until_done()
    assert box.rows() == [1]


def test_jobs_of_a_process_that_nobody_remembers_run_again(box: Box) -> None:
    """A restored backup: the jobs are in the name of a worker of another box."""
    job = jobs_app.insert.enqueue(1)
    life = Life(box.folder / "run", "worker")
    connection = litestack.db.connect()
    connection.execute(
        "UPDATE litestack_jobs SET state = 'running', worker = ?, claim = 1", (life.name,)
    )
    connection.commit()
    connection.close()
    life.close()
    box.start()
    box.wait_until_done()
    after = litestack.jobs.get(job.id)
    assert after is not None
    assert (after.state, after.crashes) == ("succeeded", 1)
    assert len(list(litestack.db.session.scalars(select(Row)))) == 1

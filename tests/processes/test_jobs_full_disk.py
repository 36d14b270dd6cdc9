"""A full disk makes jobs wait: none is lost, none takes effect twice."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.disks import fill, small_disk

from . import jobs_app
from .jobs_app import litestack
from .workers import Box, box_at, wait_until

SIZE = 64 * 1024 * 1024


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 64 MiB."""
    with small_disk(tmp_path, SIZE) as disk:
        yield disk


def test_jobs_wait_for_room_on_the_disk(disk: Path) -> None:
    with box_at(disk / "data") as box:
        _jobs_wait(box, disk)


def _jobs_wait(box: Box, disk: Path) -> None:
    jobs = 2000
    litestack.jobs.enqueue_many(jobs_app.insert.call(n) for n in range(jobs))
    box.start()
    wait_until(lambda: len(box.rows()) > 50, "some have run")
    ballast = disk / "ballast"
    fill(ballast)
    # A log that is emptied has room for a while; then nothing goes on.
    stored = -1
    for _ in range(20):
        before, stored = stored, len(box.rows())
        if stored == before:
            break
        time.sleep(1.0)
    assert stored == before < jobs
    ballast.unlink()
    box.wait_until_done(60)
    assert [job for job in litestack.jobs.list(limit=jobs) if job.failures] == []
    assert sorted(box.rows()) == list(range(jobs))
    assert litestack.jobs.counts()["succeeded"] == jobs


def test_a_worker_that_starts_on_a_full_disk_waits_for_room(disk: Path) -> None:
    with box_at(disk) as box:
        jobs_app.insert.enqueue(1)
        ballast = disk / "ballast"
        fill(ballast)
        box.start(wait=0)
        wait_until(lambda: "waits for room on the disk" in box.output(), "it says so")
        ballast.unlink()
        box.wait_until_done(60)
        assert box.rows() == [1]
        assert "starting another" not in box.output()

from __future__ import annotations

import asyncio
import threading
import time

import pytest
from flask import Flask

from flask_litestack import Litestack
from flask_litestack.jobs import current_job
from flask_litestack.jobs import threads as threads_module

from .working import state, until, working


@pytest.mark.usefixtures("context")
def test_whatever_comes_out_of_a_job_its_thread_goes_on(
    app: Flask, litestack: Litestack, caplog: pytest.LogCaptureFixture
) -> None:
    """Here it is a teardown function of the app, outside of what the runner expects to fail."""

    @app.teardown_appcontext
    def teardown(error: BaseException | None) -> None:
        if current_job() is not None and marks:
            marks.pop()
            raise SystemExit(3)

    marks: list[str] = []

    @litestack.task(retries=0)
    def act(n: int) -> None:
        marks.extend(["x"] if n == 0 else [])

    with working(app, litestack, threads=1):
        first, second = act.enqueue(0), act.enqueue(1)
        until(lambda: state(litestack, second) == "succeeded")
        until(lambda: state(litestack, first) == "failed")
    assert "could not be run" in caplog.text


@pytest.mark.usefixtures("context")
def test_a_coroutine_that_waits_is_cancelled_at_its_timeout(
    app: Flask, litestack: Litestack
) -> None:
    cleaned: list[str] = []

    @litestack.task(timeout=0.1, retries=0)
    async def waits() -> None:
        try:
            await asyncio.sleep(100)
        finally:
            cleaned.append("up")

    @litestack.task(timeout=0.1, retries=0)
    async def spins() -> None:
        while True:
            pass

    @litestack.task(timeout=0.1, retries=0)
    async def cancels() -> None:
        raise asyncio.CancelledError

    with working(app, litestack, threads=3):
        jobs = [waits.enqueue(), spins.enqueue(), cancels.enqueue()]
        began = time.monotonic()
        until(lambda: state(litestack, jobs[0]) == "failed")
        assert time.monotonic() - began < 3
        until(lambda: litestack.jobs.counts()["failed"] == 3)
    ends = [litestack.jobs.attempts(job.id)[0].error for job in jobs]
    assert "JobTimeout: the coroutine was cancelled" in ends[0]
    assert "JobTimeout" in ends[1]
    assert "CancelledError" in ends[2]
    assert cleaned == ["up"]


@pytest.mark.usefixtures("context")
def test_two_jobs_that_do_not_stop_at_the_same_time_cost_no_thread(
    app: Flask, litestack: Litestack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads_module, "INSIST", 0.1)
    monkeypatch.setattr(threads_module, "GIVE_UP", 0.2)
    release = threading.Event()
    together = threading.Barrier(2)

    @litestack.task(timeout=0.1, retries=0)
    def stuck(n: int) -> None:
        release.wait(30)

    @litestack.task
    def meet(n: int) -> None:
        together.wait(10)

    with working(app, litestack, threads=2):
        try:
            litestack.jobs.enqueue_many(stuck.call(n) for n in range(2))
            until(lambda: litestack.jobs.counts()["failed"] == 2)
            time.sleep(0.1)
            litestack.jobs.enqueue_many(meet.call(n) for n in range(6))
            until(lambda: litestack.jobs.counts()["succeeded"] == 6)
        finally:
            release.set()

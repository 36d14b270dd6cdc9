from __future__ import annotations

import threading

import pytest
from flask import Flask

from flask_litestack import Litestack
from flask_litestack.jobs.claims import Failure, Outcome

from .working import state, until, working


@pytest.mark.usefixtures("context")
def test_an_end_that_cannot_be_stored_fails_its_job_alone(app: Flask, litestack: Litestack) -> None:
    wait = threading.Event()

    @litestack.task
    def act(n: int) -> None:
        wait.wait(20)

    with working(app, litestack) as worker:
        jobs = [act.enqueue(n) for n in range(2)]
        until(lambda: len(litestack.jobs.workers()[0].running) == 2)
        ends = [
            Outcome(active.claim, "scheduled", 1.0, 2.0, 3e9, 1, failure=Failure(text))
            for active, text in zip(worker._threads._active, ["fine", "\udce9"], strict=False)
            if active is not None
        ]
        worker._ended.extend(ends)
        wait.set()
        until(lambda: litestack.jobs.counts()["running"] == 0)
    assert sorted(state(litestack, job) for job in jobs) == ["failed", "scheduled"]
    (failed,) = litestack.jobs.list(state="failed")
    (attempt,) = litestack.jobs.attempts(failed.id)
    assert "its end (scheduled) could not be stored: UnicodeEncodeError" in attempt.error

"""What status and doctor say of jobs that nobody runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from flask import Flask

from flask_litestack import Litestack
from flask_litestack.jobs.health import findings
from flask_litestack.jobs.worker import Worker


def told(litestack: Litestack) -> str:
    return " ".join(
        f"{f.severity.name}: {f.what}" for f in findings(litestack.jobs, litestack.settings)
    )


def test_jobs_that_have_come_due_without_a_worker_are_told(
    litestack: Litestack, app: Flask
) -> None:
    task = litestack.task(_nothing)
    with app.app_context():
        assert told(litestack) == ""
        task.using(run_after=5.0).enqueue()
        assert told(litestack) == "OK: No job has failed or waits for long."
        litestack.jobs.use_clock(lambda: time.time() + 3600)
        assert "1 jobs of the queue default wait, for 3595 s; no worker runs" in told(litestack)


def test_a_queue_that_nobody_listens_to_is_told(litestack: Litestack, app: Flask) -> None:
    task = litestack.task(_nothing)
    with app.app_context():
        task.using(queue="mail").enqueue()
    worker = Worker(app, litestack.jobs, queues=["other"], threads=1)
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        with app.app_context():
            wait_until(lambda: bool(litestack.jobs.workers()))
            litestack.jobs.use_clock(lambda: time.time() + 100)
            assert "jobs of the queue mail wait" in told(litestack)
            assert "no worker listens to it" in told(litestack)
    finally:
        worker.stop()
        thread.join()


def _nothing() -> None:
    pass


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)

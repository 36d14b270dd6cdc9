"""A worker in a thread of the test's process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from flask import Flask

from flask_litestack import Litestack
from flask_litestack.jobs import Job
from flask_litestack.jobs.worker import Worker


@contextmanager
def working(app: Flask, litestack: Litestack, **options: Any) -> Iterator[Worker]:
    values: dict[str, Any] = {"queues": ["*"], "threads": 2, **options}
    worker = Worker(app, litestack.jobs, **values)
    thread = threading.Thread(target=worker.run)
    thread.start()
    with app.app_context():
        until(lambda: litestack.jobs.workers())
    try:
        yield worker
    finally:
        worker.stop(5)
        thread.join(20)
        assert not thread.is_alive()


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.005)


def state(litestack: Litestack, job: Job) -> str:
    found = litestack.jobs.get(job.id)
    assert found is not None
    return found.state

"""RQ."""

from redis import Redis
from rq import Queue

from . import REDIS_PORT, note


def noop(n):
    pass


def mark(n):
    note("marks", n)


class Client:
    def __init__(self):
        self._queue = Queue(connection=Redis(port=REDIS_PORT))

    def enqueue(self, task, n):
        self._queue.enqueue(f"benchmarks.jobs_apps.rq_app.{task}", n, result_ttl=0)


COMMAND = ["rq", "worker", "--quiet", "-u", f"redis://127.0.0.1:{REDIS_PORT}"]
OPTIONS: list[str] = []

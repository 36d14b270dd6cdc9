"""Dramatiq with Redis."""

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from . import REDIS_PORT, note

broker = RedisBroker(port=REDIS_PORT, db=2)
dramatiq.set_broker(broker)


@dramatiq.actor
def noop(n):
    pass


@dramatiq.actor
def mark(n):
    note("marks", n)


class Client:
    def enqueue(self, task, n):
        globals()[task].send(n)


COMMAND = ["dramatiq", "benchmarks.jobs_apps.dramatiq_app"]
OPTIONS = ["--processes", "1", "--threads", "4"]

"""huey with Redis."""

from huey import RedisHuey

from . import REDIS_PORT, note

huey = RedisHuey(port=REDIS_PORT, blocking=True, results=False)


@huey.task()
def noop(n):
    pass


@huey.task()
def mark(n):
    note("marks", n)


class Client:
    def enqueue(self, task, n):
        globals()[task](n)


COMMAND = ["huey_consumer", "benchmarks.jobs_apps.huey_redis.huey"]
OPTIONS = ["-w", "4", "-k", "thread", "-q"]

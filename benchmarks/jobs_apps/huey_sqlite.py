"""huey with its SQLite storage."""

from huey import SqliteHuey

from . import FOLDER, note

huey = SqliteHuey(filename=str(FOLDER / "huey.sqlite3"), results=False)


@huey.task()
def noop(n):
    pass


@huey.task()
def mark(n):
    note("marks", n)


class Client:
    def enqueue(self, task, n):
        globals()[task](n)


COMMAND = ["huey_consumer", "benchmarks.jobs_apps.huey_sqlite.huey"]
OPTIONS = ["-w", "4", "-k", "thread", "-q"]

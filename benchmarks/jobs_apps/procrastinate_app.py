"""procrastinate on PostgreSQL."""

import contextlib

import procrastinate
from sqlalchemy.engine import make_url

from . import POSTGRES, note

url = make_url(POSTGRES or "postgresql://")
app = procrastinate.App(
    connector=procrastinate.SyncPsycopgConnector(
        conninfo=f"host={url.query.get('host', '')} user={url.username} dbname={url.database}"
    )
)


@app.task
def noop(n):
    pass


@app.task
def mark(n):
    note("marks", n)


class Client:
    def __init__(self):
        app.open()
        with contextlib.suppress(Exception):  # there already
            app.schema_manager.apply_schema()

    def enqueue(self, task, n):
        globals()[task].defer(n=n)


COMMAND = ["procrastinate", "--app", "benchmarks.jobs_apps.procrastinate_app.worker_app", "worker"]
OPTIONS = ["--concurrency", "4"]
worker_app = app.with_connector(
    procrastinate.PsycopgConnector(
        conninfo=f"host={url.query.get('host', '')} user={url.username} dbname={url.database}"
    )
)

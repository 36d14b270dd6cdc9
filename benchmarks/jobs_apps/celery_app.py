"""Celery with Redis; its database is PostgreSQL."""

from celery import Celery
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from . import POSTGRES, REDIS_PORT, note

app = Celery("bench", broker=f"redis://127.0.0.1:{REDIS_PORT}/1")
app.conf.task_ignore_result = True
app.conf.worker_hijack_root_logger = False


class Model(DeclarativeBase):
    pass


class Row(Model):
    __tablename__ = "row"
    id: Mapped[int] = mapped_column(primary_key=True)
    n: Mapped[int]


_engines = []


def engine():
    """Make the engine in the process that uses it."""
    if not _engines:
        _engines.append(create_engine(POSTGRES))
    return _engines[0]


@app.task
def noop(n):
    pass


@app.task
def mark(n):
    note("marks", n)


@app.task
def write(n):
    with Session(engine()) as session:
        session.add(Row(n=n))
        session.commit()


class Client:
    def __init__(self):
        if POSTGRES:
            Model.metadata.create_all(engine())

    def enqueue(self, task, n):
        globals()[task].delay(n)


COMMAND = ["celery", "-A", "benchmarks.jobs_apps.celery_app", "worker"]
OPTIONS = ["-c", "4", "--loglevel", "ERROR", "--without-gossip", "--without-mingle"]

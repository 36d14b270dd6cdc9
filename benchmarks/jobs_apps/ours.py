"""flask-litestack."""

from __future__ import annotations

import time

from flask import Flask
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from flask_litestack import Litestack

from . import FOLDER, note


class Model(DeclarativeBase):
    pass


class Row(Model):
    __tablename__ = "row"
    id: Mapped[int] = mapped_column(primary_key=True)
    n: Mapped[int]


litestack = Litestack(metadata=Model.metadata)


@litestack.task
def noop(n: int) -> None:
    pass


@litestack.task
def mark(n: int) -> None:
    note("marks", n)


@litestack.task
def write(n: int) -> None:
    litestack.db.session.add(Row(n=n))


@litestack.task
def sleep(n: int) -> None:
    note("marks", n)
    time.sleep(30)


def create_app() -> Flask:
    app = Flask("bench")
    app.config.from_prefixed_env()
    app.config["LITESTACK_DATA_PATH"] = FOLDER / "ours"
    litestack.init_app(app)
    return app


class Client:
    """Enqueues, in the benchmark's own process."""

    def __init__(self) -> None:
        self.app = create_app()
        self.app.app_context().push()
        litestack.db.create_all()

    def enqueue(self, task: str, n: int) -> None:
        globals()[task].enqueue(n)


COMMAND = ["flask", "--app", "benchmarks.jobs_apps.ours:create_app", "litestack", "worker"]
OPTIONS = ["--threads", "4"]

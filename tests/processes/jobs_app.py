"""An app whose tasks misbehave, for workers in processes of their own."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from flask import Flask
from sqlalchemy import event
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from flask_litestack import Litestack
from flask_litestack.jobs import RetryPolicy, current_job


class Model(DeclarativeBase):
    pass


class Row(Model):
    __tablename__ = "row"
    id: Mapped[int] = mapped_column(primary_key=True)
    n: Mapped[int]
    at: Mapped[float]
    pid: Mapped[int]


litestack = Litestack(metadata=Model.metadata)


def create_app() -> Flask:
    app = Flask("jobs_app")
    app.config.from_prefixed_env()
    litestack.init_app(app)

    @app.get("/")
    def index() -> str:
        return "served"

    return app


def note(n: int) -> None:
    """Write a row in the job's own transaction."""
    litestack.db.session.add(Row(n=n, at=time.time(), pid=os.getpid()))


def first_time(name: str) -> bool:
    """Whether nobody has asked this before, in any process, even one that was killed since."""
    marker = litestack.settings.data_path / f"{name}.marker"
    try:
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


@litestack.task
def noop(n: int) -> None:
    pass


@litestack.task
def insert(n: int) -> None:
    note(n)


@litestack.task
def crash_at(point: str, n: int) -> None:
    """Have the worker killed at a named point, the first time."""
    first = first_time(f"crash-{n}")
    if first and point == "after claim":
        die()
    note(n)
    litestack.jobs.get(current_job().id)  # type: ignore[union-attr]
    if first and point == "after the writes":
        litestack.db.session.flush()
        die()
    if first and point in ("before the commit", "after the commit"):
        name = "before_commit" if point == "before the commit" else "after_commit"
        event.listen(litestack.db.session, name, lambda session: die())


@litestack.task
def fork_a_child(n: int) -> None:
    note(n)
    if first_time(f"fork-{n}"):
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
        Path(litestack.settings.data_path / "child.pid").write_text(str(child))
        die()


@litestack.task
def terminate_a_child(n: int) -> None:
    """Fork a child that SIGTERM ends, as multiprocessing does."""
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    os.kill(child, signal.SIGTERM)
    _, status = os.waitpid(child, 0)
    note(os.waitstatus_to_exitcode(status))


@litestack.task
def wait_for(n: int, seconds: float) -> None:
    note(n)
    litestack.settings.data_path.joinpath(f"waiting-{n}").touch()
    time.sleep(seconds)


@litestack.task
def wait_long_then_note(n: int, seconds: float) -> None:
    litestack.settings.data_path.joinpath(f"waiting-{n}").touch()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.01)
    note(n)


@litestack.task
def hold_the_lock(n: int, seconds: float) -> None:
    note(n)
    litestack.db.session.flush()
    litestack.settings.data_path.joinpath(f"waiting-{n}").touch()
    time.sleep(seconds)


@litestack.task
def parent(count: int, how: str) -> None:
    """Enqueue children; the first time, be killed half-way."""
    first = first_time("parent")
    half = count // 2
    for numbers in (range(half), range(half, count)):
        if how == "many":
            litestack.jobs.enqueue_many(insert.call(n) for n in numbers)
        for n in numbers if how != "many" else ():
            child = insert.using(unique_key=str(n)) if how == "unique" else insert
            child.enqueue(n)
        if first:
            die()


@litestack.task(retries=0)
def fail(n: int) -> None:
    raise RuntimeError(n)


@litestack.task(retries=0)
def poison() -> None:
    die()


@litestack.task(timeout=0.3, retries=0)
def spin() -> None:
    while True:
        pass


@litestack.task(timeout=0.3, retries=0)
def stuck() -> None:
    time.sleep(100)


@litestack.task(timeout=0.3, retries=0)
def stuck_with_the_lock() -> None:
    note(1)
    litestack.db.session.flush()
    time.sleep(100)


@litestack.task(retries=RetryPolicy(limit=1, first_delay=0.1))
def fail_once(n: int) -> None:
    note(n)
    if first_time(f"fail-{n}"):
        raise RuntimeError("the first time")


def _count_slot() -> None:
    note(0)


if os.environ.get("EVERY_SECOND"):
    every_second = litestack.task(cron="* * * * * *", name="every_second")(_count_slot)
if os.environ.get("NEWER"):

    @litestack.task(name="newer")
    def newer() -> None:
        note(1)


__all__ = ["Row", "Session", "create_app", "litestack"]

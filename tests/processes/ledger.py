"""An app that takes orders and ships each of them in a job, and a client that keeps the books.

What was acknowledged must be there, and whatever is there must be shipped once.
"""

from __future__ import annotations

import http.client
import itertools
import threading
import time
from contextlib import closing
from pathlib import Path

from flask import Flask, Response
from sqlalchemy import func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from flask_litestack import Litestack
from tests.servers import BIN

GUNICORN = [
    str(BIN / "gunicorn"),
    *("--config", "python:flask_litestack.gunicorn", "tests.processes.ledger:create_app()"),
]


class Model(DeclarativeBase):
    pass


class Order(Model):
    __tablename__ = "order"
    n: Mapped[int] = mapped_column(primary_key=True)


class Shipment(Model):
    __tablename__ = "shipment"
    id: Mapped[int] = mapped_column(primary_key=True)
    n: Mapped[int]


litestack = Litestack(metadata=Model.metadata)


@litestack.task
def ship(n: int) -> None:
    litestack.db.session.add(Shipment(n=n))


@litestack.channel("orders")
def orders() -> bool:
    return True


def create_app(data_path: Path | None = None) -> Flask:
    """Make the app, with its tables."""
    app = Flask("ledger")
    app.config.from_prefixed_env()
    if data_path is not None:
        app.config["LITESTACK_DATA_PATH"] = data_path
    litestack.init_app(app)
    with app.app_context():
        litestack.db.create_all()

    @app.get("/")
    def index() -> str:
        return str(litestack.db.session.scalar(select(func.count()).select_from(Order)))

    @app.post("/orders/<int:n>")
    def take(n: int) -> str:
        with litestack.db.write() as session:
            session.add(Order(n=n))
            ship.enqueue(n)
            orders.broadcast(n)
        return "taken"

    @app.get("/up")
    def up() -> Response:
        return litestack.up()

    return app


class Customers:
    """Threads that order one thing after the other, and note what was acknowledged.

    :param threads: how many order at the same time.
    :param first: the number of the first order.
    :param pause: the seconds of each between two orders.
    """

    def __init__(self, port: int, threads: int = 4, first: int = 1, pause: float = 0.0) -> None:
        self._port = port
        self._pause = pause
        self._numbers = itertools.count(first)
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._order) for _ in range(threads)]
        self.taken: list[int] = []
        self.refused: list[str] = []
        """Answers that are no "taken": error pages."""
        self.unanswered = 0
        """Connections that were refused, or broke."""

    def __enter__(self) -> Customers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _order(self) -> None:
        while not self._stop.is_set():
            n = next(self._numbers)
            try:
                status, text = post(self._port, f"/orders/{n}")
            except (OSError, http.client.HTTPException):
                self.unanswered += 1
                time.sleep(0.02)
                continue
            if (status, text) == (200, "taken"):
                self.taken.append(n)
            else:
                self.refused.append(f"{status} {text}")
            if self._pause:
                time.sleep(self._pause)


def post(port: int, path: str) -> tuple[int, str]:
    """Send a request on a connection of its own; return the status and the text."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.request("POST", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def books() -> tuple[list[int], list[int]]:
    """The orders and the shipments in the database of the current app, both sorted."""
    session = litestack.db.session
    session.rollback()
    ordered = list(session.scalars(select(Order.n).order_by(Order.n)))
    return ordered, list(session.scalars(select(Shipment.n).order_by(Shipment.n)))

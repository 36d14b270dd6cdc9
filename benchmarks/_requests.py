"""One request with one SELECT, through the whole of Flask's WSGI application."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import flask
from flask_sqlalchemy_lite import SQLAlchemy
from sqlalchemy import create_engine
from sqlalchemy.orm import Session
from werkzeug.test import EnvironBuilder

from . import _peers
from ._measure import Operation
from ._workloads import ROWS, Item


def bare_flask(folder: Path) -> Operation:
    """No database at all."""
    app = flask.Flask("bench")

    @app.get("/")
    def view() -> str:
        return "an item"

    return _request(app)


def bare_session(folder: Path) -> Operation:
    """A SQLAlchemy session of the view's own, on an untuned engine."""
    app = flask.Flask("bench")
    engine = create_engine(f"sqlite:///{folder / 'stock.sqlite3'}")

    @app.get("/")
    def view() -> str:
        with Session(engine) as session:
            return session.get_one(Item, random.randint(1, ROWS)).name

    return _request(app)


def ours(folder: Path) -> Operation:
    """``litestack.db.session``."""
    app, litestack = _peers.app(folder)

    @app.get("/")
    def view() -> str:
        return litestack.db.session.get_one(Item, random.randint(1, ROWS)).name

    return _request(app)


def flask_sqlalchemy_lite(folder: Path) -> Operation:
    """Flask-SQLAlchemy-Lite's session, on an untuned engine."""
    app = flask.Flask("bench")
    app.config["SQLALCHEMY_ENGINES"] = {"default": f"sqlite:///{folder / 'stock.sqlite3'}"}
    db = SQLAlchemy(app)

    @app.get("/")
    def view() -> str:
        return db.session.get_one(Item, random.randint(1, ROWS)).name

    return _request(app)


#: By the names of the table. Stock SQLAlchemy and ours must have been filled before.
KINDS: dict[str, Callable[[Path], Operation]] = {
    "bare Flask": bare_flask,
    "bare session": bare_session,
    "ours": ours,
    "Flask-SQLAlchemy-Lite": flask_sqlalchemy_lite,
}


def prepare(kind: str, folder: Path) -> tuple[Operation, Callable[[], int]]:
    """Make a worker's operation, which nothing has to repeat."""
    return KINDS[kind](folder), lambda: 0


def _request(app: flask.Flask) -> Operation:
    environ = EnvironBuilder("/").get_environ()

    def operation() -> None:
        statuses: list[str] = []

        def start_response(status: str, headers: Iterable[tuple[str, str]], *_: Any) -> Any:
            statuses.append(status)

        response = app.wsgi_app(environ.copy(), start_response)
        b"".join(response)
        response.close()  # type: ignore[attr-defined]
        if statuses != ["200 OK"]:
            raise RuntimeError(f"the request was answered {statuses}")

    return operation

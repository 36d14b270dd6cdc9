"""What is compared: one way each to get a SQLAlchemy engine for the same code."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flask
import sqlalchemy
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.pool import StaticPool

from flask_litestack import Litestack

ASYNCHRONOUS = "PostgreSQL, asynchronous commit"
MEMORY = "SQLAlchemy in memory (no peer: a floor)"


@dataclass(frozen=True)
class Peer:
    """A named database. ``engine()`` makes a new engine, in the process that will use it."""

    name: str
    engine: Callable[[], Engine]
    in_memory: bool = False
    """Whether each engine is a database of its own, empty and for one thread."""


def memory() -> Peer:
    """SQLAlchemy and SQLite without a file, a lock or a transaction log: what Python costs."""
    return Peer(MEMORY, lambda: create_engine("sqlite://", poolclass=StaticPool), in_memory=True)


def stock(folder: Path) -> Peer:
    """SQLAlchemy on SQLite as it comes."""
    url = f"sqlite:///{folder / 'stock.sqlite3'}"
    return Peer("stock SQLAlchemy", lambda: create_engine(url))


def recipe(folder: Path) -> Peer:
    """SQLAlchemy on SQLite with what every blog post recommends."""
    url = f"sqlite:///{folder / 'recipe.sqlite3'}"

    def engine() -> Engine:
        engine = create_engine(url)

        @event.listens_for(engine, "connect")
        def connect(connection: sqlite3.Connection, _: Any) -> None:
            connection.isolation_level = None
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("PRAGMA busy_timeout = 5000")
            connection.execute("PRAGMA foreign_keys = ON")

        @event.listens_for(engine, "begin")
        def begin(connection: sqlalchemy.Connection) -> None:
            connection.exec_driver_sql("BEGIN")

        return engine

    return Peer("usual WAL recipe", engine)


def ours(folder: Path, synchronous: str) -> Peer:
    """This library with its default settings but for ``synchronous``."""
    return Peer(f"ours, {synchronous}", lambda: app(folder, synchronous)[1].db.engine)


def app(folder: Path, synchronous: str = "NORMAL") -> tuple[flask.Flask, Litestack]:
    """Make a Flask app with this library; its context is pushed on the calling thread."""
    app = flask.Flask("bench")
    app.config["LITESTACK_DATA_PATH"] = folder / f"ours-{synchronous}"
    app.config["LITESTACK_SYNCHRONOUS"] = synchronous
    litestack = Litestack()
    litestack.init_app(app)
    app.app_context().push()
    return app, litestack


def postgres(url: str, synchronous_commit: str) -> Peer:
    """PostgreSQL, as it comes for "on"."""
    options = {"options": f"-c synchronous_commit={synchronous_commit}"}
    name = "PostgreSQL" if synchronous_commit == "on" else ASYNCHRONOUS
    return Peer(name, lambda: create_engine(url, connect_args=options))

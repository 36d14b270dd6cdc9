"""The demo blog as it is, or on PostgreSQL: what gunicorn serves for benchmarks/blog.py.

On PostgreSQL the blog's ``litestack`` is replaced by as little as it needs: a session of the app
context, as Flask-SQLAlchemy gives one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flask import Flask, g
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

BLOG = Path(__file__).parents[1] / "examples" / "blog"


def create_app() -> Flask:
    """Make the blog; on PostgreSQL if the variable BENCH_POSTGRES has its URL."""
    sys.path.insert(0, str(BLOG))
    import blog

    if url := os.environ.get("BENCH_POSTGRES"):
        blog.litestack = OnPostgres(url)
    app: Flask = blog.create_app({"SECRET_KEY": "benchmark"})
    return app


class OnPostgres:
    """Stands in for the Litestack object and its ``db``."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._engine: Any = None
        self.db = self

    def init_app(self, app: Flask) -> None:
        """Close the session at the end of each app context."""
        app.teardown_appcontext(self._close)

    @property
    def engine(self) -> Any:
        """Made at first use, in the worker."""
        if self._engine is None:
            self._engine = create_engine(self._url)
        return self._engine

    @property
    def session(self) -> Session:
        """The session of this app context."""
        if "session" not in g:
            g.session = Session(self.engine)
        session: Session = g.session
        return session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """Commit at the end; enough for filling the tables."""
        with self.session.begin():
            yield self.session

    def _close(self, _: BaseException | None) -> None:
        if "session" in g:
            g.pop("session").close()

"""The demo blog as it is, or on PostgreSQL: what gunicorn serves for benchmarks/blog.py.

On PostgreSQL the ``db`` of the blog's Litestack object is replaced by as little as the page needs:
a session of the app context, as Flask-SQLAlchemy gives one. All else is the same.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from flask import Flask, g
from sqlalchemy import Engine, create_engine
from sqlalchemy.orm import Session

from flask_litestack.sqlite.databases import Databases

BLOG = Path(__file__).parents[1] / "examples" / "blog"


def create_app() -> Flask:
    """Make the blog.

    The variable BENCH_POSTGRES has PostgreSQL's URL, if it is to run there; BENCH_CACHE the type
    of its cache, if it is to be another than ours.
    """
    sys.path.insert(0, str(BLOG))
    import blog

    config = {"SECRET_KEY": "benchmark"}
    if cache := os.environ.get("BENCH_CACHE"):
        config["CACHE_TYPE"] = cache
    if url := os.environ.get("BENCH_POSTGRES"):
        blog.litestack.db = OnPostgres(url)
    app: Flask = blog.create_app(config)
    if url:
        app.teardown_appcontext(blog.litestack.db.close_session)
    return app


class OnPostgres:
    """Stands in for ``litestack.db``."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._engine: Engine | None = None

    @property
    def engine(self) -> Engine:
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

    def files(self, folder: Path) -> Databases:
        """Those in the data folder alone."""
        return Databases.of(folder, [])

    def holds_changes(self) -> bool:
        """Nothing waits for a commit here."""
        return False

    def after_commit(self, function: Callable[[], object]) -> None:
        """Nothing waits for a commit here."""
        function()

    def close_session(self, _: BaseException | None = None) -> None:
        """Close the session at the end of its app context."""
        if "session" in g:
            g.pop("session").close()

"""A pytest plugin for SQLAlchemy's own tests: each SQLite engine they make is tuned, or not.

``LITESTACK_SUITE`` is "tuned" or "untuned". Both use the same SQLite library, so that a difference
between two runs is a difference that tuning makes.
"""

from __future__ import annotations

import os
from typing import Any

import sqlalchemy

from flask_litestack import tune
from flask_litestack.sqlite import driver

_create_engine = sqlalchemy.create_engine
_tuned = {"tuned": True, "untuned": False}[os.environ["LITESTACK_SUITE"]]


def create_engine(url: Any, **options: Any) -> sqlalchemy.Engine:
    """Make an engine as SQLAlchemy does; on a SQLite file, tune it."""
    made_by_hand = "module" in options or options.get("_initialize") is False
    url = sqlalchemy.make_url(url)
    if url.drivername not in ("sqlite", "sqlite+pysqlite") or made_by_hand:
        return _create_engine(url, **options)
    engine = _create_engine(url, module=driver.module, **options)
    if _tuned and url.database not in (None, "", ":memory:"):
        tune(engine)
    return engine


sqlalchemy.create_engine = create_engine


def pytest_collection() -> None:
    """Run the tests of savepoints too, which SQLAlchemy leaves out for SQLite as it comes."""
    if _tuned:
        from sqlalchemy.testing import exclusions
        from test.requirements import DefaultRequirements  # of SQLAlchemy's source

        DefaultRequirements.savepoints = property(lambda self: exclusions.open())

"""A pytest plugin: Flask-Caching's own tests ask for these fixtures and get our backend.

``LITESTACK_SUITE_CACHE`` says with whose Cache object: "flask_caching" or "flask_litestack".
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flask_caching
import pytest
from flask import Flask

from flask_litestack.cache import SQLiteCache
from flask_litestack.cache import cache as ours
from tests.cache.clock import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


def backend(
    app: Flask, config: dict[str, Any], args: list[Any], kwargs: dict[str, Any]
) -> SQLiteCache:
    """What CACHE_TYPE names: our backend with their clock."""
    return SQLiteCache.factory(app, config, args, {**kwargs, "clock": config["CLOCK"]})


@pytest.fixture
def app(request: pytest.FixtureRequest, clock: Clock, tmp_path: Path) -> Iterator[Flask]:
    app = Flask(request.module.__name__, template_folder=str(request.path.parent))
    app.testing = True
    app.config.update(CACHE_TYPE=f"{__name__}.backend", LITESTACK_DATA_PATH=tmp_path, CLOCK=clock)
    yield app
    for backend in app.extensions.get("cache", {}).values():
        if isinstance(backend, SQLiteCache):
            backend.close()


@pytest.fixture
def cache(app: Flask) -> flask_caching.Cache:
    if os.environ["LITESTACK_SUITE_CACHE"] == "flask_caching":
        return flask_caching.Cache(app)
    cache = ours.Cache()
    cache.init_app(app)
    return cache


@pytest.fixture(params=flask_caching.SUPPORTED_HASH_FUNCTIONS, ids=lambda method: method.__name__)
def hash_method(request: pytest.FixtureRequest) -> Callable[..., object]:
    method: Callable[..., object] = request.param
    return method


@pytest.fixture
def make_cache(clock: Clock, tmp_path: Path) -> Iterator[Callable[[], SQLiteCache]]:
    """What their generic backend tests are run on."""
    made = []

    def make() -> SQLiteCache:
        made.append(SQLiteCache(tmp_path, clock=clock))
        return made[-1]

    yield make
    for backend in made:
        backend.close()

"""Caches in a temporary folder, closed at the end of the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flask_litestack.cache import SQLiteCache

from .clock import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make(tmp_path: Path, clock: Clock) -> Iterator[Callable[..., SQLiteCache]]:
    """Make caches over one file, as several processes would have them."""
    made: list[SQLiteCache] = []

    def make(**options: Any) -> SQLiteCache:
        cache = SQLiteCache(tmp_path, **{"clock": clock, **options})
        made.append(cache)
        return cache

    yield make
    for cache in made:
        cache.close()


@pytest.fixture
def cache(make: Callable[..., SQLiteCache]) -> SQLiteCache:
    return make()

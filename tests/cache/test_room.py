"""The cap on the file, and what is evicted."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flask_litestack.cache import SQLiteCache
from flask_litestack.cache.connections import Connection

from .clock import Clock

Make = Callable[..., SQLiteCache]


def file_bytes(folder: Path) -> int:
    return sum((folder / f"cache.sqlite3{s}").stat().st_size for s in ("", "-wal"))


@pytest.mark.parametrize("length", [10, 1_000, 5_000, 100_000])
def test_the_file_stays_below_its_cap(make: Make, tmp_path: Path, length: int) -> None:
    size = 1 << 20
    cache = make(size=size)
    for i in range(3 * size // (length + 200)):
        assert cache.set(f"key-{i}", "x" * length)
        if i % 50 == 0:
            assert file_bytes(tmp_path) <= size * 1.1
    stats = cache.stats()
    assert stats.evictions > 0
    assert stats.used_size > 0.7 * size  # and it is used
    assert file_bytes(tmp_path) <= size * 1.1


def test_a_set_many_stays_below_the_cap(make: Make, tmp_path: Path) -> None:
    cache = make(size=2 << 20)
    for i in range(200):
        assert len(cache.set_many({f"key-{i}-{j}": "x" * 500 for j in range(50)})) == 50
    assert file_bytes(tmp_path) <= (2 << 20) * 1.1
    assert cache.get("key-199-49") is not None


@pytest.mark.parametrize("length", [150_000, 250_000, 900_000])
def test_a_set_many_of_large_values_stays_below_the_cap(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    size = 4 << 20
    cache = make(size=size)
    for i in range(2000):
        cache.set(f"key-{i}", "x" * 1500)
    sizes = []
    settle = cache._access.room.settle

    def measure(connection: Connection) -> None:
        sizes.append(file_bytes(tmp_path))
        settle(connection)

    monkeypatch.setattr(cache._access.room, "settle", measure)
    values = {f"large-{i}": b"x" * length for i in range(8)}
    began = time.monotonic()
    assert cache.set_many(values) == list(values)
    assert time.monotonic() - began < 10  # evicting ends when there is nothing left
    assert max(sizes) <= size * 1.1


def test_small_entries_give_way_to_a_large_one(make: Make) -> None:
    cache = make(size=2 << 20)
    for i in range(20_000):
        cache.set(f"key-{i}", i)
    for i in range(20):
        assert cache.set(f"large-{i}", b"x" * 300_000)
    assert cache.get("large-19") is not None


def test_expired_entries_go_first(make: Make, clock: Clock) -> None:
    cache = make(size=2 << 20)
    for i in range(500):
        cache.set(f"kept-{i}", "x" * 500, 0)
    for i in range(2000):
        cache.set(f"old-{i}", "x" * 500, 10)
    clock.advance(10)
    for i in range(1500):
        cache.set(f"new-{i}", "x" * 500, 0)
    kept = sum(cache.has(f"kept-{i}") for i in range(500))
    assert cache.stats().evictions > 500
    assert kept > 350


def test_what_is_read_often_stays(make: Make) -> None:
    cache = make(size=2 << 20)
    hot = [f"hot-{i}" for i in range(100)]
    cache.set_many(dict.fromkeys(hot, "x" * 500))
    for i in range(6_000):
        cache.set(f"cold-{i}", "x" * 500)
        cache.get(hot[i % 100])
    assert sum(cache.has(key) for key in hot) >= 95


def test_overwriting_does_not_evict_others(make: Make) -> None:
    cache = make(size=2 << 20)
    for i in range(4000):
        cache.set(f"key-{i}", "x" * 500)
    entries = cache.stats().entries
    for i in range(4000):
        cache.set("key-3999", f"{i:500}")
    assert cache.stats().entries > 0.9 * entries


def test_an_interrupted_write_to_a_full_file_leaves_no_transaction_open(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, other = make(size=1 << 20), make(size=1 << 20)
    for i in range(1000):
        cache.set(f"key-{i}", "x" * 1500)

    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cache._access.room, "_evict", interrupt)
        with pytest.raises(KeyboardInterrupt):
            cache.set_many({f"more-{i}": "x" * 1500 for i in range(10)})
        with pytest.raises(KeyboardInterrupt):
            [cache.set(f"more-{i}", "x" * 1500) for i in range(10)]
    assert other.set("key", 1)
    assert cache.set("key", 2)
    assert other.get("key") == 2


def test_a_cap_that_was_lowered_empties_the_file(make: Make, tmp_path: Path) -> None:
    large = make(size=8 << 20)
    for i in range(6000):
        large.set(f"key-{i}", "x" * 1000)
    large.close()
    small = make(size=2 << 20)
    small.set("key", 1)
    assert file_bytes(tmp_path) <= (2 << 20) * 1.1

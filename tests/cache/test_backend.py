"""The contract of Flask-Caching's backends, and what ours adds."""

from __future__ import annotations

import datetime
import pickle
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flask_litestack.cache import SQLiteCache
from flask_litestack.errors import ConfigError, JobTimeout

from .clock import Clock

Make = Callable[..., SQLiteCache]


@pytest.mark.parametrize(
    "value",
    [0, -1, 2**62, -(2**63), 2**63, 2**100, True, False, 1.5, "", "\ud800", b"", [1], {"a": (1,)}],
)
def test_a_value_comes_back_with_its_type(cache: SQLiteCache, value: object) -> None:
    assert cache.set("key", value)
    got = cache.get("key")
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    "key", ["", "a" * 10_000, "\ud800", "ключ", "a\0b", "'; DROP TABLE entries"]
)
def test_any_string_is_a_key(cache: SQLiteCache, key: str) -> None:
    assert cache.set(key, "value")
    assert cache.get(key) == "value"
    assert cache.get(key + "x") is None
    assert cache.get_many(key, "other") == ["value", None]


def test_a_cached_none_is_told_from_a_miss(cache: SQLiteCache) -> None:
    assert not cache.has("key")
    assert cache.set("key", None)
    assert cache.get("key") is None
    assert cache.has("key")
    assert cache.get_or_set("key", lambda: pytest.fail("computed")) is None


def test_a_value_expires_and_timeout_0_is_for_ever(cache: SQLiteCache, clock: Clock) -> None:
    cache.set("minute", 1, 60)
    cache.set("delta", 1, datetime.timedelta(seconds=60))
    cache.set("default", 1)
    cache.set("ever", 1, 0)
    clock.advance(59.9)
    assert cache.get_many("minute", "delta", "default", "ever") == [1, 1, 1, 1]
    clock.advance(0.1)
    assert cache.get_many("minute", "delta", "default", "ever") == [None, None, 1, 1]
    assert not cache.has("minute")
    clock.advance(1e9)
    assert cache.get_many("default", "ever") == [None, 1]


def test_a_negative_timeout_deletes(cache: SQLiteCache) -> None:
    cache.set("key", 1)
    assert not cache.set("key", 2, -1)
    assert not cache.has("key")


def test_a_timeout_of_any_length_is_one(cache: SQLiteCache, clock: Clock) -> None:
    assert cache.set("key", 1, 10**400)
    assert cache.set_many({"other": 1}, 10**400)
    clock.advance(1e9)
    assert cache.get_many("key", "other") == [1, 1]


def test_add_does_not_overwrite_what_is_there(cache: SQLiteCache, clock: Clock) -> None:
    assert cache.add("key", 1, 10)
    assert not cache.add("key", 2, 10)
    assert cache.get("key") == 1
    clock.advance(10)
    assert cache.add("key", 3, 10)
    assert cache.get("key") == 3


def test_a_counter_keeps_its_timeout_and_starts_anew_after_it(
    cache: SQLiteCache, clock: Clock
) -> None:
    cache.add("logins", 0, 60)
    assert [cache.inc("logins"), cache.inc("logins", 5), cache.dec("logins", 2)] == [1, 6, 4]
    clock.advance(60)
    assert cache.inc("logins") == 1
    assert cache.get("logins") == 1
    clock.advance(299)
    assert cache.inc("logins") == 2
    clock.advance(1)
    assert cache.dec("logins", 3) == -3


@pytest.mark.parametrize("start", [2**62 - 1, 2**63 - 1, 2**64, 1.5, True])
def test_a_counter_is_any_number(cache: SQLiteCache, start: float) -> None:
    cache.set("n", start, 60)
    assert cache.inc("n", 2) == start + 2
    assert cache.inc("n", 2**70) == start + 2 + 2**70
    assert cache.get("n") == start + 2 + 2**70


def test_incrementing_a_string_is_an_error_as_elsewhere(cache: SQLiteCache) -> None:
    cache.set("key", "text")
    with pytest.raises(TypeError):
        cache.inc("key")
    assert cache.get("key") == "text"


def test_many_at_once(cache: SQLiteCache) -> None:
    values = {f"key-{i}": i for i in range(1200)}
    assert sorted(cache.set_many(values)) == sorted(values)
    assert cache.get_many(*values) == list(values.values())
    assert cache.get_dict("key-3", "none") == {"key-3": 3, "none": None}
    assert cache.delete_many(*values, "none") == [*values, "none"]
    assert cache.get_many(*values) == [None] * 1200
    assert cache.get_many() == []
    assert cache.set_many({}) == []


def test_unlink_deletes(cache: SQLiteCache) -> None:
    cache.set("key", 1)
    cache.unlink("key", "none")
    assert not cache.has("key")


def test_delete_tells_whether_the_key_was_there(cache: SQLiteCache, clock: Clock) -> None:
    cache.set("key", 1, 10)
    assert cache.delete("key")
    assert not cache.delete("key")
    cache.set("key", 1, 10)
    clock.advance(10)
    assert not cache.delete("key")


def test_clear_spares_the_keys_of_another_prefix(make: Make) -> None:
    one, other = make(key_prefix="one:"), make(key_prefix="other:")
    for i in range(1200):
        one.set(str(i), 1)
        other.set(str(i), 2)
    assert one.clear()
    assert one.get_many(*map(str, range(1200))) == [None] * 1200
    assert other.get_many(*map(str, range(1200))) == [2] * 1200
    one.set("1", 1)
    make().clear()
    assert one.get("1") is other.get("1") is None


def test_what_cannot_be_pickled_raises(cache: SQLiteCache) -> None:
    with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
        cache.set("key", lambda: None)


class Renamed:
    """A class that the next release no longer has."""


def test_a_value_of_a_class_that_is_gone_is_a_miss(
    cache: SQLiteCache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache.set("key", Renamed())
    monkeypatch.delattr(f"{__name__}.Renamed")
    assert cache.get("key") is None
    assert not cache.has("key")
    assert len(caplog.records) == 1
    assert "unpickle" in caplog.text


@pytest.mark.parametrize("stale", [0, 60])
def test_a_value_of_a_class_that_is_gone_is_computed_anew(
    cache: SQLiteCache, monkeypatch: pytest.MonkeyPatch, stale: float
) -> None:
    cache.set("key", Renamed(), 0)
    cache.set("count", Renamed(), 0)
    monkeypatch.delattr(f"{__name__}.Renamed")
    assert cache.get_or_set("key", lambda: "new", stale=stale) == "new"
    assert cache.get("key") == "new"
    assert cache.inc("count") == 1


@pytest.mark.parametrize("look", ["get", "get_many", "get_or_set"])
def test_a_miss_of_a_value_of_a_class_that_is_gone_gives_a_lease(
    make: Make, monkeypatch: pytest.MonkeyPatch, look: str
) -> None:
    reader, writer = make(), make()
    writer.set("key", Renamed())
    monkeypatch.delattr(f"{__name__}.Renamed")
    if look == "get_or_set":
        reader.get_or_set("key", lambda: writer.delete("key") or "old")
        assert not writer.has("key")
    else:
        getattr(reader, look)("key")
        writer.delete("key")
        assert not reader.set("key", "old")


def time_out() -> None:
    raise JobTimeout("send_mail ran for longer than 1 s")


class Slow:
    """A value that is being unpickled when its job runs out of time."""

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return time_out, ()


def test_the_timeout_of_a_job_is_no_trouble_of_the_caches(
    cache: SQLiteCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.set("slow", Slow())
    cache.set("key", 1)
    looks: list[Callable[[], object]] = [
        lambda: cache.get("slow"),
        lambda: cache.get_many("slow"),
        lambda: cache.get_or_set("slow", lambda: 1),
    ]
    for look in looks:
        with pytest.raises(JobTimeout):
            look()
    assert cache.has("slow")
    with monkeypatch.context() as patch:
        patch.setattr(cache._deletes, "delete", lambda *args: time_out())
        with pytest.raises(JobTimeout):
            cache.delete("other")
    assert cache.get("key") == 1


def test_two_caches_over_one_file_see_each_other(make: Make) -> None:
    one, other = make(), make()
    one.set("key", 1)
    assert other.get("key") == 1
    other.delete("key")
    assert one.get("key") is None


def test_threads_share_a_cache(cache: SQLiteCache) -> None:
    def work() -> None:
        for i in range(200):
            cache.inc("n")
            cache.set(f"key-{i}", i)
            assert cache.get(f"key-{i}") == i

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cache.get("n") == 1600


def test_reading_leaves_no_transaction_open(cache: SQLiteCache, make: Make) -> None:
    cache.set("key", "x" * 100_000)
    assert cache.get("key")
    assert cache.get_many("key")
    other = make()
    other.set("other", 1)
    (connection,) = other._access.pool.all
    busy, pages, done = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    assert (busy, pages, done) == (0, 0, 0)


# -- one caller computes ----------------------------------------------------------------------


def test_get_or_set_computes_once_for_all_threads(cache: SQLiteCache) -> None:
    calls = []

    def compute() -> int:
        calls.append(1)
        time.sleep(0.1)
        return 7

    got: list[int] = []
    threads = [
        threading.Thread(target=lambda: got.append(cache.get_or_set("key", compute)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [7] * 8
    assert len(calls) == 1


def test_an_expired_value_is_served_while_one_computes(cache: SQLiteCache, clock: Clock) -> None:
    cache.get_or_set("key", lambda: "old", 10, stale=30)
    clock.advance(10)
    assert cache.get("key") is None  # only get_or_set serves stale values
    computing, go_on = threading.Event(), threading.Event()

    def compute() -> str:
        computing.set()
        go_on.wait(10)
        return "new"

    thread = threading.Thread(target=cache.get_or_set, args=("key", compute, 10))
    thread.start()
    assert computing.wait(10)
    assert cache.get_or_set("key", lambda: "third", 10, stale=30) == "old"
    go_on.set()
    thread.join()
    assert cache.get_or_set("key", lambda: "third", 10, stale=30) == "new"
    clock.advance(50)
    assert cache.get_or_set("key", lambda: "third", 10, stale=30) == "third"


def test_two_caches_over_one_file_in_a_process_share_their_locks(make: Make) -> None:
    """A record lock belongs to the process: one cache would drop the other's."""
    one, other = make(), make()
    calls = []

    def compute() -> int:
        calls.append(1)
        time.sleep(0.1)
        return 7

    threads = [
        threading.Thread(target=cache.get_or_set, args=("key", compute)) for cache in (one, other)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1


@pytest.mark.parametrize("value", [b"x" * 400_000, "x"])
def test_what_cannot_be_stored_is_computed_by_all_at_once(make: Make, value: object) -> None:
    """One after the other, the last of them would wait for all before it."""
    cache, other = make(size=1 << 20), make()
    at_once, most = 0, 0
    mutex = threading.Lock()

    def compute() -> object:
        nonlocal at_once, most
        with mutex:
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.1)
        if value == "x":
            other.delete("key")  # refuses it
        with mutex:
            at_once -= 1
        return value

    threads = [threading.Thread(target=cache.get_or_set, args=("key", compute)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most > 2


def test_an_error_lets_the_next_one_compute(cache: SQLiteCache) -> None:
    with pytest.raises(ZeroDivisionError):
        cache.get_or_set("key", lambda: 1 // 0)
    assert cache.get_or_set("key", lambda: 1) == 1


def test_a_computation_may_ask_for_its_own_result(cache: SQLiteCache) -> None:
    assert cache.get_or_set("key", lambda: cache.get_or_set("key", lambda: 1) + 1) == 2


# -- bounds -----------------------------------------------------------------------------------


def test_a_set_many_tells_what_was_stored_before_trouble(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, other = make(size=1 << 20), make()
    put = cache._store._put_batch
    calls = []

    def fail(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise OSError("no more")
        return put(*args)

    monkeypatch.setattr(cache._store, "_put_batch", fail)
    values = {f"key-{i}": i for i in range(100)}
    stored = cache.set_many(values)
    assert 0 < len(stored) < 100
    assert [key for key in values if other.has(key)] == stored


def test_what_is_larger_than_the_cache_is_not_stored(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    cache = make(size=1 << 20)
    cache.set("key", 1)
    assert not cache.set("large", b"x" * (2 << 20))
    assert cache.get("large") is None
    assert len(caplog.records) == 1
    assert cache.set("other", 2)


def test_a_cap_below_the_least_is_an_error(make: Make) -> None:
    with pytest.raises(ConfigError, match="LITESTACK_CACHE_SIZE = 1000"):
        make(size=1000)


def test_nothing_is_made_before_the_first_use(make: Make, tmp_path: Path) -> None:
    make()
    assert list(tmp_path.iterdir()) == []

"""Nothing stale: deletes, open transactions, and values computed from older rows."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from typing import Any

import pytest
from flask import Flask, g
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from flask_litestack import Litestack
from flask_litestack.cache import SQLiteCache, backend, leases
from flask_litestack.sqlite import driver
from tests.conftest import Comment, Post

Make = Callable[..., SQLiteCache]


def elsewhere(app: Flask, function: Callable[[], object]) -> object:
    """Run a function in another thread and app context, as another request would."""
    result: list[object] = []

    def run() -> None:
        with app.app_context():
            result.append(function())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return result[0]


def test_a_value_computed_before_a_delete_is_refused(make: Make) -> None:
    reader, writer = make(), make()
    assert reader.get("post") is None
    writer.delete("post")
    assert not reader.set("post", "old")
    assert reader.get("post") is None
    assert reader.set("post", "new")
    assert reader.stats().refused == 1


@pytest.mark.parametrize("store", ["set", "set_many", "add", "get_or_set"])
@pytest.mark.parametrize("look", ["get", "get_many"])
def test_every_way_to_store_is_refused(make: Make, store: str, look: str) -> None:
    reader, writer = make(), make()
    getattr(reader, look)("post")
    if store == "get_or_set":
        assert reader.get_or_set("post", lambda: writer.delete("post") or "old") == "old"
    else:
        writer.delete("post")
        assert not (reader.set_many({"post": "old"}) if store == "set_many" else None)
        if store != "set_many":
            assert not getattr(reader, store)("post", "old")
    assert not writer.has("post")


def test_clear_and_delete_many_refuse_older_values_too(make: Make) -> None:
    reader, writer = make(), make()
    for forget in (writer.clear, lambda: writer.delete_many("post")):
        reader.get("post")
        forget()
        assert not reader.set("post", "old")


def test_a_value_written_through_is_not_overwritten_by_an_older_one(make: Make) -> None:
    reader, writer = make(), make()
    reader.get("post")
    writer.set("post", "new")
    assert not reader.set("post", "old")
    assert reader.get("post") == "new"


@pytest.mark.parametrize("store", ["set", "set_many", "add"])
def test_an_older_computation_does_not_overwrite_a_newer_one(make: Make, store: str) -> None:
    older, newer = make(), make()
    older.get("post")
    newer.get("post")
    assert (
        newer.set_many({"post": "new"})
        if store == "set_many"
        else (getattr(newer, store)("post", "new"))
    )
    assert not older.set("post", "old")
    assert newer.get("post") == "new"


def test_a_context_may_compute_again_what_expired(app: Flask, litestack: Litestack) -> None:
    cache = litestack.cache
    with app.app_context():
        for _ in range(2):
            assert cache.get("key") is None
            assert cache.set("key", 1, 1)
            time.sleep(1.05)


def test_a_set_without_a_miss_is_a_set(make: Make) -> None:
    one, other = make(), make()
    other.delete("progress")
    assert one.set("progress", 1)
    assert one.set("progress", 2)
    assert other.get("progress") == 2


def test_rows_read_before_the_miss_count(app: Flask, litestack: Litestack) -> None:
    """A template loads its posts first and misses its fragments later."""
    cache = litestack.cache
    with app.app_context():
        litestack.db.session.get(Post, 1)
        elsewhere(app, lambda: cache.delete("fragment"))
        assert cache.get("fragment") is None
        assert not cache.set("fragment", "of the old post")
    with app.app_context():
        assert cache.get("fragment") is None
        assert cache.set("fragment", "of the new post")


def test_what_a_context_deletes_itself_it_may_set(app: Flask, litestack: Litestack) -> None:
    cache = litestack.cache
    with app.app_context():
        cache.get("key")
        cache.set("key", 1)
        cache.delete("key")
        assert cache.get("key") is None
        assert cache.set("key", 2)
        assert cache.get("key") == 2


@pytest.mark.parametrize("context", ["app", "long", "none"])
@pytest.mark.parametrize("forget", ["delete", "delete_many", "clear"])
def test_a_value_may_follow_ones_own_delete(
    app: Flask, litestack: Litestack, monkeypatch: pytest.MonkeyPatch, context: str, forget: str
) -> None:
    with app.app_context():
        cache = litestack.cache.sqlite
    if context == "long":
        monkeypatch.setattr(leases, "LONG", 0.0)
    with app.app_context() if context != "none" else nullcontext():
        for again in (False, True):
            assert cache.get("key") is None
            getattr(cache, forget)(*([] if forget == "clear" else ["key"]))
            if again:
                assert cache.get("key") is None
            assert cache.set("key", "new")
            cache.delete("key")
        assert cache.get("key") is None
        elsewhere(app, lambda: cache.delete("key"))
        assert not cache.set("key", "old")


def test_in_a_long_context_a_lease_is_as_old_as_the_miss(
    app: Flask, litestack: Litestack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "LONG", 0.0)
    cache = litestack.cache
    with app.app_context():
        elsewhere(app, lambda: cache.delete("key"))
        assert cache.get("key") is None
        assert cache.set("key", 1)


def test_a_context_forgets_when_it_remembers_too_much(
    app: Flask, litestack: Litestack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "REMEMBERED", 10)
    cache = litestack.cache
    with app.app_context():
        for i in range(100):
            cache.get(f"missed-{i}")
            cache.set(f"set-{i}", i)
        (context,) = (v for k, v in vars(g).items() if k.startswith("_litestack_cache_"))
        assert len(context._missed) <= 10
        assert len(context._own) <= 10


# -- open transactions ------------------------------------------------------------------------


def test_a_delete_takes_effect_after_the_commit(app: Flask, litestack: Litestack) -> None:
    cache = litestack.cache
    with app.app_context():
        cache.set_many({"key": "old", "other": 1})
        with litestack.db.write() as session:
            session.add(Post(title="new"))
            assert cache.delete("key")
            assert cache.get("key") is None
            assert cache.get_many("key", "other") == [None, 1]
            assert not cache.has("key")
            assert not cache.set("key", "from rows that are not committed")
            assert not cache.add("key", "from rows that are not committed")
            assert cache.inc("key") is None
            assert elsewhere(app, lambda: cache.get("key")) == "old"
        assert cache.get("key") is None
        assert elsewhere(app, lambda: cache.get("key")) is None
        assert cache.set("key", "new")
        assert elsewhere(app, lambda: cache.get("key")) == "new"


def test_a_rollback_leaves_the_value_in_place(app: Flask, litestack: Litestack) -> None:
    cache = litestack.cache
    with app.app_context():
        cache.set("key", "old")
        with suppress(ZeroDivisionError), litestack.db.write():
            cache.delete("key")
            assert cache.get("key") is None
            raise ZeroDivisionError
        assert cache.get("key") == "old"
        litestack.db.session.add(Post(title="new"))
        cache.delete_many("key")
        assert cache.get("key") is None
        litestack.db.session.rollback()
        assert cache.get("key") == "old"
        with litestack.db.write() as session:
            with suppress(ZeroDivisionError), session.begin_nested():
                cache.delete("key")
                assert cache.get("key") is None
                raise ZeroDivisionError
            assert cache.get("key") == "old"
        assert cache.get("key") == "old"


def test_a_clear_waits_for_the_commit(app: Flask, litestack: Litestack) -> None:
    cache = litestack.cache
    with app.app_context():
        cache.set("key", "old")
        with litestack.db.write():
            cache.clear()
            assert cache.get("key") is None
            assert elsewhere(app, lambda: cache.get("key")) == "old"
        assert elsewhere(app, lambda: cache.get("key")) is None


def test_many_deletes_are_one_at_the_commit(
    app: Flask, litestack: Litestack, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = litestack.cache
    with app.app_context():
        deletes = cache.sqlite._deletes
        calls = []
        delete = deletes.delete

        def count(wanted: Any, *args: Any, **options: Any) -> int:
            calls.append(len(wanted))
            return delete(wanted, *args, **options)

        monkeypatch.setattr(deletes, "delete", count)
        cache.set_many({f"key-{i}": i for i in range(20)})
        with litestack.db.write() as session:
            for i in range(20):
                cache.delete(f"key-{i}")
            with suppress(ZeroDivisionError), session.begin_nested():
                cache.delete("other")
                raise ZeroDivisionError
            with session.begin_nested():
                cache.delete_many("key-1", "key-20")
            assert cache.get_many("key-1", "key-19") == [None, None]
        assert calls == [21, 21]  # before the commit, and after it
        assert cache.set("key-1", 1)


def test_a_commit_waits_for_a_locked_cache_only_briefly(
    app: Flask, litestack: Litestack, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = litestack.cache
    with app.app_context():
        cache.set_many({"a": 1, "b": 1, "c": 1})
        litestack.db.session.get(Post, 1)
        other = driver.module.connect(
            cache.sqlite._access.file.path, isolation_level=None, check_same_thread=False
        )
        other.execute("BEGIN IMMEDIATE")
        unlock = threading.Timer(1.5, lambda: other.execute("ROLLBACK"))
        took = []
        with litestack.db.write() as session:
            session.add(Post(title="new"))
            session.flush()
            unlock.start()
            began = time.monotonic()
            litestack.db.after_commit(lambda: took.append(time.monotonic() - began))
            for key in "abc":
                cache.delete(key)
        assert took[0] < 1  # not three times a second, with the lock of the database
        assert cache.get_many("a", "b", "c") == [None] * 3
        unlock.join()
        other.close()


def test_a_commit_that_fails_forgets_its_deletes(app: Flask, litestack: Litestack) -> None:
    cache = litestack.cache

    def fail(forget: Callable[[], object]) -> None:
        session = litestack.db.session
        session.add(Post(title="new"))
        session.flush()  # begins; the pragma ends with the transaction
        session.execute(text("PRAGMA defer_foreign_keys = ON"))
        session.add(Comment(post_id=99, text="on nothing"))
        session.flush()
        forget()
        with pytest.raises(IntegrityError):
            session.commit()
        session.rollback()

    with app.app_context():
        fail(lambda: cache.delete("key"))
    assert elsewhere(app, lambda: (cache.get("key"), cache.set("key", 1))) == (None, True)
    with app.app_context():
        fail(cache.clear)
        assert cache.get("other") is None
        assert cache.set("other", 1)
    assert elsewhere(app, lambda: (cache.get("new"), cache.set("new", 1))) == (None, True)


def test_after_a_failed_flush_there_is_nothing_to_wait_for(
    app: Flask, litestack: Litestack
) -> None:
    cache = litestack.cache
    with app.app_context():
        cache.set_many({"a": 1, "b": 1, "c": 1})
        litestack.db.session.add(Post(id=1, title="there is one"))
        with pytest.raises(IntegrityError):
            litestack.db.session.flush()
        assert cache.delete("a")
        assert cache.delete_many("b") == ["b"]
        assert elsewhere(app, lambda: cache.get_many("a", "b", "c")) == [None, None, 1]
        assert cache.clear()
        assert elsewhere(app, lambda: cache.get("c")) is None
        litestack.db.session.rollback()


def test_a_delete_in_a_job_waits_only_for_changes(app: Flask, litestack: Litestack) -> None:
    cache = litestack.cache
    with app.app_context():
        cache.set_many({"a": 1, "b": 1})
        litestack.db.begin_unit()  # as the worker does
        litestack.db.session.get(Post, 1)
        cache.delete("a")
        assert elsewhere(app, lambda: cache.get("a")) is None
        litestack.db.session.add(Post(title="new"))
        cache.delete("b")
        assert elsewhere(app, lambda: cache.get("b")) == 1
        litestack.db.session.commit()
        assert elsewhere(app, lambda: cache.get("b")) is None


def test_delete_memoized_waits_for_the_commit(app: Flask, litestack: Litestack) -> None:
    cache = litestack.cache
    values = iter(range(100))

    @cache.memoize(60)
    def compute(x: int) -> int:
        return next(values)

    with app.app_context():
        assert [compute(1), compute(2), compute(1)] == [0, 1, 0]
        with litestack.db.write():
            cache.delete_memoized(compute)
            assert elsewhere(app, lambda: compute(1)) == 0
        assert compute(1) == 2
        with litestack.db.write():
            cache.delete_memoized(compute, 1)
            assert elsewhere(app, lambda: compute(1)) == 2
        assert compute(1) > 2


def test_whoever_sees_the_commit_does_not_see_the_value(
    app: Flask, litestack: Litestack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The entry is gone, and leases are refused, before the commit is visible."""
    cache = litestack.cache
    seen = []
    finish = backend._Deletion.finish

    def look_then_finish(deletion: backend._Deletion) -> None:
        seen.append(elsewhere(app, lambda: cache.get("key")))
        seen.append(elsewhere(app, lambda: (cache.get("key"), cache.set("key", "maybe old"))))
        finish(deletion)

    monkeypatch.setattr(backend._Deletion, "finish", look_then_finish)
    with app.app_context():
        cache.set("key", "old")
        with litestack.db.write() as session:
            session.add(Post(title="new"))
            cache.delete("key")
        assert seen == [None, (None, False)]
        assert elsewhere(app, lambda: (cache.get("key"), cache.set("key", 1))) == (None, True)


def test_memoize_does_not_bring_back_a_version_that_was_deleted(
    app: Flask, litestack: Litestack
) -> None:
    """Flask-Caching writes the version key again after each computation."""
    cache = litestack.cache
    rows = ["old"]

    @cache.memoize(60)
    def compute() -> str:
        row = rows[0]
        if row == "old" and not deleted:
            rows[0] = "new"
            deleted.append(elsewhere(app, lambda: cache.delete_memoized(compute)))
        return row

    deleted: list[object] = []
    with app.app_context():
        assert compute() == "old"
    with app.app_context():
        assert compute() == "new"


def test_a_forced_update_does_not_store_older_rows(app: Flask, litestack: Litestack) -> None:
    cache = litestack.cache

    @cache.cached(60, key_prefix="page", forced_update=lambda: True)
    def page() -> str:
        elsewhere(app, lambda: cache.delete("page"))
        return "old"

    with app.test_request_context():
        cache.set("page", "older")
        assert page() == "old"
        assert not cache.has("page")

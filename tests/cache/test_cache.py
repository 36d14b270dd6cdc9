"""``litestack.cache``: options per app, and one caller who computes."""

from __future__ import annotations

import copy
import hashlib
import inspect
import pickle
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from flask import Flask, request
from flask_caching import Cache as PlainCache

from flask_litestack import Litestack
from flask_litestack.cache import SQLiteCache
from flask_litestack.cache.cache import Cache
from flask_litestack.errors import ConfigError


def make_app(folder: Path, **config: object) -> Flask:
    app = Flask("shop")
    app.config.update(LITESTACK_DATA_PATH=folder, **config)
    return app


def in_threads(count: int, function: Callable[[], object]) -> None:
    threads = [threading.Thread(target=function) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_it_needs_no_configuration(tmp_path: Path) -> None:
    app = make_app(tmp_path / "data")
    litestack = Litestack()
    litestack.init_app(app)
    assert not (tmp_path / "data").exists()
    with app.app_context():
        assert litestack.cache.set("key", 1)
        assert litestack.cache.get("key") == 1
        assert isinstance(litestack.cache.cache, SQLiteCache)
    assert (tmp_path / "data" / "cache.sqlite3").stat().st_mode & 0o077 == 0o044 & 0o077
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700


def test_the_backend_works_with_flask_caching_alone(tmp_path: Path) -> None:
    app = Flask("shop")
    cache = PlainCache(
        config={
            "CACHE_TYPE": "flask_litestack.SQLiteCache",
            "CACHE_DEFAULT_TIMEOUT": 7,
            "LITESTACK_DATA_PATH": tmp_path,
            "LITESTACK_CACHE_SIZE": 2 << 20,
        }
    )
    cache.init_app(app)
    with app.app_context():
        cache.set("key", [1])
        assert cache.get("key") == [1]
        assert cache.cache.default_timeout == 7
        assert cache.cache.stats().most_size == 2 << 20
    assert (tmp_path / "cache.sqlite3").exists()


def test_the_data_path_comes_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LITESTACK_DATA_PATH", str(tmp_path / "elsewhere"))
    app = Flask("shop")
    cache = PlainCache(app, config={"CACHE_TYPE": "flask_litestack.SQLiteCache"})
    with app.app_context():
        cache.set("key", 1)
    assert (tmp_path / "elsewhere" / "cache.sqlite3").exists()


def test_options_of_two_apps_do_not_leak(tmp_path: Path) -> None:
    litestack = Litestack()
    one = make_app(tmp_path / "one", CACHE_HASH_METHOD=hashlib.md5, CACHE_ENABLE_SIGNALS=True)
    two = make_app(tmp_path / "two", CACHE_SOURCE_CHECK=True, CACHE_DEFAULT_TIMEOUT=9)
    for app in (one, two):
        litestack.init_app(app)
    cache = litestack.cache
    with one.app_context():
        assert cache.app is one
        assert (cache.hash_method, cache.enable_signals) == (hashlib.md5, True)
        assert (cache.source_check, cache.cache.default_timeout) == (False, 300)
        cache.set("key", 1)
    with two.app_context():
        assert cache.app is two
        assert (cache.hash_method, cache.enable_signals) == (hashlib.sha256, False)
        assert (cache.source_check, cache.cache.default_timeout) == (True, 9)
        assert cache.get("key") is None


def test_another_cache_type_works_without_protection(tmp_path: Path) -> None:
    app = make_app(tmp_path, CACHE_TYPE="SimpleCache")
    litestack = Litestack()
    litestack.init_app(app)
    cache = litestack.cache

    @cache.memoize(60, lock=True, stale=10)
    def compute(x: int) -> int:
        return x + len(calls)

    calls: list[int] = []
    with app.app_context():
        assert cache.get_or_set("key", lambda: 1) == 1
        assert cache.get_or_set("key", lambda: 2) == 1
        assert compute(1) == 1
        calls.append(1)
        assert compute(1) == 1
        with pytest.raises(ConfigError, match="CACHE_TYPE is SimpleCache"):
            cache.stats()
    assert not (tmp_path / "cache.sqlite3").exists()


@pytest.mark.parametrize("kind", ["cached", "memoize"])
def test_one_thread_computes_and_the_others_wait(
    app: Flask, litestack: Litestack, kind: str
) -> None:
    cache = litestack.cache
    calls = []
    decorate = (
        cache.cached(60, key_prefix="page", lock=True)
        if kind == "cached"
        else cache.memoize(60, lock=True)
    )

    @decorate
    def compute() -> str:
        calls.append(1)
        time.sleep(0.1)
        return "page"

    got = []

    def ask() -> None:
        with app.test_request_context():
            got.append(compute())

    in_threads(8, ask)
    assert got == ["page"] * 8
    assert len(calls) == 1
    if kind == "memoize":
        with app.app_context():
            cache.delete_memoized(compute)
        in_threads(8, ask)
        assert len(calls) == 2


@pytest.mark.parametrize("option", ["key_prefix", "make_cache_key", "unless"])
def test_options_that_are_functions_may_use_the_cache(
    app: Flask, litestack: Litestack, option: str
) -> None:
    cache = litestack.cache
    calls = []

    def ask_cache(*args: object) -> object:
        version = cache.get("version")
        return False if option == "unless" else f"page of {version}"

    @cache.cached(60, lock=True, **{"key_prefix": "page", option: ask_cache})
    def page() -> str:
        calls.append(1)
        time.sleep(0.1)
        return "page"

    def ask() -> None:
        with app.test_request_context():
            assert page() == "page"

    with app.app_context():
        cache.set("version", 7)
    in_threads(8, ask)
    assert len(calls) == 1


@pytest.mark.parametrize("kind", ["cached", "memoize"])
def test_stale_values_are_served_while_one_computes(
    app: Flask, litestack: Litestack, kind: str
) -> None:
    cache = litestack.cache
    computing, go_on = threading.Event(), threading.Event()
    values = ["new", "old"]
    decorate = (
        cache.cached(1, key_prefix="page", stale=60)
        if kind == "cached"
        else cache.memoize(1, stale=60)
    )

    @decorate
    def page() -> str:
        value = values.pop()
        if value == "new":
            computing.set()
            go_on.wait(10)
        return value

    def ask() -> None:
        with app.test_request_context():
            page()

    ask()
    time.sleep(1.1)
    thread = threading.Thread(target=ask)
    thread.start()
    assert computing.wait(10)
    with app.test_request_context():
        assert page() == "old"
    go_on.set()
    thread.join()
    with app.test_request_context():
        assert page() == "new"


def test_a_cached_function_keeps_its_attributes(app: Flask, litestack: Litestack) -> None:
    cache = litestack.cache

    class Shop:
        def __repr__(self) -> str:
            return "shop"

        @cache.memoize(50)
        def price(self, item: int) -> int:
            """Return a price."""
            return item + 1

    @app.get("/page")
    @cache.cached(50)
    def page() -> str:
        return f"page of {request.path}"

    assert Shop.price.__name__ == "price"
    assert Shop.price.__doc__ == "Return a price."
    assert list(inspect.signature(Shop.price).parameters) == ["self", "item"]
    assert Shop.price.cache_timeout == 50
    page.cache_timeout = 70
    with app.app_context():
        shop = Shop()
        assert [shop.price(1), shop.price(item=1), shop.price.uncached(shop, 4)] == [2, 2, 5]
        cache.delete_memoized(shop.price)
        cache.delete_memoized(shop.price, 1)
        client = app.test_client()
        assert client.get("/page").text == "page of /page"
        assert cache.get("view//page") == "page of /page"
        (connection,) = cache.sqlite._access.pool.all
        expires = connection.execute(
            "SELECT expires FROM entries WHERE key = ?", (b"flask_cache_view//page",)
        ).fetchone()
        assert 60 < expires[0] - time.time() <= 70


@Cache().memoize(60)
def price(item: int) -> int:
    return item


def test_a_cached_function_is_pickled_and_copied_by_its_name() -> None:
    assert pickle.loads(pickle.dumps(price)) is price
    assert copy.copy(price) is copy.deepcopy(price) is price


def test_an_async_view_is_cached(app: Flask, litestack: Litestack) -> None:
    pytest.importorskip("asgiref")

    @app.get("/page")
    @litestack.cache.cached(50, lock=True)
    async def page() -> str:
        calls.append(1)
        return "page"

    calls: list[int] = []
    client = app.test_client()
    assert [client.get("/page").text for _ in range(2)] == ["page", "page"]
    assert len(calls) == 1


def test_a_cached_view_may_use_the_cache_inside(app: Flask, litestack: Litestack) -> None:
    cache = litestack.cache

    @cache.cached(50, key_prefix="outer", lock=True)
    def outer() -> str:
        assert cache.get("outer") is None
        cache.set("other", 1, 50)
        return inner()

    @cache.memoize(50, lock=True)
    def inner() -> str:
        return "value"

    with app.test_request_context():
        assert outer() == "value"
        assert cache.get("outer") == "value"
        assert cache.get("other") == 1


def test_template_fragments_are_cached(app: Flask, litestack: Litestack) -> None:
    from flask import render_template_string

    template = "{% cache 60, 'post', key %}{{ value }}{% endcache %}"
    with app.test_request_context():
        assert render_template_string(template, key="7", value="old") == "old"
        assert render_template_string(template, key="7", value="new") == "old"
        assert render_template_string(template, key="8", value="new") == "new"


def test_outside_of_an_app_it_says_what_is_missing() -> None:
    with pytest.raises(ConfigError, match="init_app"):
        Cache().get("key")


def test_init_app_refuses_a_wrong_setting(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="LITESTACK_CACHE_SIZE"):
        Litestack().init_app(make_app(tmp_path, LITESTACK_CACHE_SIZE=1000))

"""A chat-like app on Werkzeug's server, which hands its connections over."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, abort, request
from werkzeug.serving import make_server

from flask_litestack import Litestack, Rejected
from flask_litestack.cable.store import Store
from tests.conftest import Model

from .client import Client


class Site:
    """An app with channels, and what its functions saw."""

    def __init__(self, data_path: Path, **config: Any) -> None:
        self.app = Flask("chat")
        self.app.config.update(
            {f"LITESTACK_{key.upper()}": value for key, value in config.items()},
            LITESTACK_DATA_PATH=data_path,
        )
        self.app.logger.disabled = True
        self.litestack = Litestack(metadata=Model.metadata)
        self.seen: list[Any] = []
        self.gate = threading.Event()
        self._declare()
        self.litestack.init_app(self.app)
        with self.app.app_context():
            self.litestack.db.create_all()

    def _declare(self) -> None:
        litestack, seen = self.litestack, self.seen

        @litestack.cable.connect
        def who() -> object:
            if "refuse" in request.args:
                return False
            if "abort" in request.args:
                abort(403)
            return request.args.get("user")

        @litestack.channel("posts/<int:post_id>")
        def posts(post_id: int) -> object:
            if post_id == 13:
                raise ZeroDivisionError("secret detail")
            if post_id == 14:
                raise Rejected("members only")
            if post_id == 15:
                abort(404)
            if post_id == 16:
                return None
            if post_id == 17:
                return {"title": "Seventeen"}
            if post_id == 18:
                seen.append("waiting")
                self.gate.wait(20)
            return post_id != 12

        @posts.on_message
        def said(data: object, post_id: int) -> None:
            if data == "fail":
                raise ZeroDivisionError("secret detail")
            if data == "no":
                raise Rejected("not now")
            if data == "block":
                self.gate.wait(20)
            seen.append((litestack.cable.user, post_id, data))

        @posts.on_leave
        def left(post_id: int) -> None:
            seen.append(("left", litestack.cable.user, post_id))

        @litestack.channel("rooms/<name>", presence="users")
        def rooms(name: str) -> bool:
            return True

        @litestack.channel("counted", presence="count")
        def counted() -> bool:
            return True

        self.posts, self.rooms, self.counted = posts, rooms, counted

    def broadcast(self, name: str, data: object) -> None:
        with self.app.app_context():
            self.litestack.cable.broadcast(name, data)

    def last_id(self) -> int:
        with self.app.app_context():
            return self.litestack.cable.last_id()

    @property
    def clients(self) -> int:
        with self.app.app_context():
            return self.litestack.cable.clients


@contextmanager
def served(app: Any, **options: Any) -> Iterator[int]:
    """Serve a WSGI app with Werkzeug's server; yield the port."""
    server = make_server("127.0.0.1", 0, app, threaded=True, **options)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def make_site(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """Make apps with settings; they are stopped at the end."""
    with ExitStack() as stack:

        def make(data: str = "data", **config: Any) -> Site:
            site = Site(tmp_path / data, **config)
            stack.callback(_end, site)
            return site

        yield make


def _end(site: Site) -> None:
    site.gate.set()
    site.litestack.cable.stop()
    with site.app.app_context():
        site.litestack.db.engine.dispose()


@pytest.fixture
def site(make_site: Callable[..., Site]) -> Site:
    return make_site()


@pytest.fixture
def port(site: Site) -> Iterator[int]:
    with served(site.app) as port:
        yield port


@pytest.fixture
def elsewhere(site: Site) -> Iterator[Store]:
    """Another process's view of the log."""
    store = Store(site.app.config["LITESTACK_DATA_PATH"], retention=60, size=10_000_000)
    yield store
    store.close()


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, int]]:
    """One site for all rubbish."""
    site = Site(tmp_path_factory.mktemp("fuzz"), cable_max_message=2000, cable_ping_interval=60)
    with served(site.app) as port:
        yield site, port
    site.litestack.cable.stop()
    with site.app.app_context():
        site.litestack.db.engine.dispose()


def works(site: Site, port: int) -> None:
    """Assert that the hub serves somebody else."""
    with Client(port) as client:
        client.subscribe("posts/7")
        site.broadcast("posts/7", "still here")
        assert client.read()["data"] == "still here"


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Keep Werkzeug's line for each request out of the reports."""
    caplog.set_level("WARNING", logger="werkzeug")

"""Two windows of a page that uses nothing but cable.js, and a server that dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from tests.servers import environment, free_port

from .conftest import wait_for


class Site:
    """tests/cable/app.py under gunicorn, on one port all the time."""

    def __init__(self, data_path: Path, **settings: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._environment = environment(
            FLASK_LITESTACK_DATA_PATH=str(data_path),
            **{f"FLASK_LITESTACK_{name.upper()}": value for name, value in settings.items()},
        )
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "gunicorn", "-c", "python:flask_litestack.gunicorn"]
        self.process = subprocess.Popen(
            [*command, "--bind", f"127.0.0.1:{self.port}", "tests.cable.app:create_app()"],
            env=self._environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        wait_for(f"{self.url}/pid", self.process)

    def kill(self) -> None:
        """Kill the master and its workers at once."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)

    def comment(self, text: str) -> None:
        data = urllib.parse.urlencode({"text": text}).encode()
        urllib.request.urlopen(f"{self.url}/comments", data, timeout=10).close()


@pytest.fixture
def make_site(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    sites: list[Site] = []

    def make(**settings: str) -> Site:
        sites.append(Site(tmp_path / "data", **settings))
        return sites[-1]

    yield make
    for site in sites:
        site.stop()


@pytest.fixture
def open_window(chromium: Browser) -> Iterator[Callable[..., Page]]:
    contexts: list[BrowserContext] = []

    def open_page(site: Site, init: str = "", **options: object) -> Page:
        context = chromium.new_context(base_url=site.url, **options)
        contexts.append(context)
        page = context.new_page()
        if init:
            page.add_init_script(init)
        page.goto("/")
        return page

    yield open_page
    for context in contexts:
        context.close()


def comments(page: Page) -> list[str]:
    return page.locator("#comments li").all_inner_texts()


def connected(page: Page) -> None:
    page.wait_for_function("window.fired.includes('open')")


Windows = Callable[..., Page]


def test_a_comment_appears_in_every_window_and_a_killed_server_loses_none(
    make_site: Callable[..., Site], open_window: Windows
) -> None:
    site = make_site()
    first, second = open_window(site), open_window(site)
    for page in (first, second):
        connected(page)
        expect(page.locator("p")).to_have_text("2 online")
    site.comment("one <b>")
    for page in (first, second):
        expect(page.locator("#comments li")).to_have_text(["one <b>"])
    site.kill()
    site.start()
    site.comment("two")
    for page in (first, second):
        expect(page.locator("#comments li")).to_have_text(["one <b>", "two"], timeout=40_000)
    site.comment("three")
    for page in (first, second):
        expect(page.locator("#comments li")).to_have_text(["one <b>", "two", "three"])
        assert page.evaluate("fired") == ["open", "open"]
    second.close()
    expect(first.locator("p")).to_have_text("1 online")


def test_a_page_from_the_cache_does_not_show_a_comment_twice(
    make_site: Callable[..., Site], open_window: Windows
) -> None:
    site = make_site()
    site.comment("one")
    page = open_window(site)
    connected(page)
    site.comment("two")
    expect(page.locator("#comments li")).to_have_count(2)
    page.goto("about:blank")
    site.comment("three")
    page.go_back()
    expect(page.locator("#comments li")).to_have_text(["one", "two", "three"])


def test_who_was_away_for_too_long_loads_the_page_anew(
    make_site: Callable[..., Site], open_window: Windows
) -> None:
    site = make_site(cable_log_size="2000")
    page = open_window(site)
    connected(page)
    site.comment("before")
    expect(page.locator("#comments li")).to_have_text(["before"])
    page.context.set_offline(True)
    page.evaluate("window.dispatchEvent(new Event('pagehide'))")
    for number in range(230):
        site.comment(f"{number}")
    page.context.set_offline(False)
    page.evaluate("window.dispatchEvent(new Event('online'))")
    expect(page.locator("#comments li")).to_have_count(231, timeout=15_000)
    assert "cable:missed" in page.evaluate("fired")
    site.comment("after")
    expect(page.locator("#comments li")).to_have_count(232)
    texts = comments(page)
    assert len(set(texts)) == 232


def test_a_browser_without_websockets_gets_an_event_stream(
    make_site: Callable[..., Site], open_window: Windows
) -> None:
    broken = """window.WebSocket = class {
        constructor() { setTimeout(() => this.onclose({code: 1006})) }
        close() {}
    }"""
    site = make_site()
    page = open_window(site, broken)
    connected(page)
    site.comment("one")
    expect(page.locator("#comments li")).to_have_text(["one"])


def test_a_strict_content_security_policy_is_enough(
    make_site: Callable[..., Site], open_window: Windows
) -> None:
    site = make_site()
    page = open_window(site)
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text))
    page.goto("/?csp")
    expect(page.locator("p")).to_have_text("1 online")
    site.comment("one")
    expect(page.locator("#comments li")).to_have_text(["one"])
    # The page's own inline script is refused; nothing of the cable is.
    refused = [error for error in errors if "Content Security Policy" in error]
    assert len(refused) == 1, refused
    assert "inline script" in refused[0]


def test_elements_that_come_and_go_are_subscribed_and_unsubscribed(
    make_site: Callable[..., Site], open_window: Windows
) -> None:
    site = make_site()
    page = open_window(site)
    connected(page)
    page.evaluate(
        """() => {
            window.got = [];
            document.body.insertAdjacentHTML("beforeend", '<div id=n data-cable=numbers></div>');
            document.getElementById("n").addEventListener(
                "cable:message", e => got.push(e.detail.data));
        }"""
    )
    page.wait_for_timeout(500)
    url = f"{site.url}/broadcast/1/3"
    urllib.request.urlopen(url, b"", timeout=10).close()
    page.wait_for_function("got.length == 3")
    page.evaluate("document.getElementById('n').remove()")
    page.wait_for_timeout(300)
    urllib.request.urlopen(url, b"", timeout=10).close()
    page.wait_for_timeout(300)
    assert page.evaluate("got") == [[1, 0], [1, 1], [1, 2]]


def test_a_script_can_send_and_listen(make_site: Callable[..., Site], open_window: Windows) -> None:
    site = make_site()
    page = open_window(site)
    connected(page)
    data = page.evaluate(
        """() => new Promise((resolve) => {
            const subscription = cable.subscribe("posts/8", (data, id) => resolve([data, id > 0]));
            document.addEventListener("cable:subscribed", (event) => {
                if (event.detail.channel == "posts/8") subscription.send({hello: "wörld"});
            });
        })"""
    )
    assert data == [{"hello": "wörld"}, True]

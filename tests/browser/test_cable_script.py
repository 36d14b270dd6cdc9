"""cable.js against a server that says just what it is told to say."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

SCRIPT = Path(__file__).parents[2] / "flask_litestack" / "cable" / "static" / "cable.js"

#: Sockets that open and speak when the test says so; timers that only note how long they would be.
FAKES = """
window.sockets = []; window.waits = [];
window.WebSocket = class {
    constructor(url) { this.url = `${url}`; this.sent = []; sockets.push(this); }
    send(text) { this.sent.push(JSON.parse(text)); }
    close() { this.isClosed = true; }
};
const real = window.setTimeout;
window.setTimeout = (function_, wait = 0) => {
    if (wait >= 10 ** 8) return 0; // the server's silence
    waits.push(wait);
    return real(function_, 0);
};
window.got = {};
window.listen = (name, channel, since) => {
    got[name] = [];
    return cable.subscribe(channel, (data) => got[name].push(data), {since});
};
"""


class Script:
    """A page with cable.js, and its server."""

    def __init__(self, page: Page) -> None:
        self.page = page

    def run(self, code: str) -> Any:
        return self.page.evaluate(f"() => {{ {code} }}")

    @property
    def sent(self) -> list[tuple[str, str, int | None]]:
        """What the last socket was sent."""
        found = self.page.evaluate("sockets.at(-1).sent")
        return [(r["type"], r["channel"], r.get("since")) for r in found]

    def open(self) -> None:
        self.run("sockets.at(-1).onopen()")

    def say(self, kind: str, channel: str, number: int, data: object = None) -> None:
        message = {"type": kind, "channel": channel, "id": number, "data": data}
        self.page.evaluate("text => sockets.at(-1).onmessage({data: text})", json.dumps(message))

    def say_numbers(self, channel: str, first: int, last: int) -> None:
        for number in range(first, last + 1):
            self.say("message", channel, number, number)

    def got(self, name: str) -> list[int]:
        return self.page.evaluate("name => got[name]", name)


@pytest.fixture
def make_script(chromium: Browser) -> Iterator[Callable[[], Script]]:
    contexts = []

    def make() -> Script:
        context = chromium.new_context()
        contexts.append(context)
        page = context.new_page()
        source = SCRIPT.read_text()
        page.route("**/cable.js", lambda route: route.fulfill(body=source))
        page.route("**/page", lambda route: route.fulfill(body=html, content_type="text/html"))
        tag = '<script src="/cable.js" data-silence="1000000"></script>'
        html = f"<!doctype html><script>{FAKES}</script>{tag}{tag}<p id=place></p>"
        page.goto("http://site.test/page")
        return Script(page)

    yield make
    for context in contexts:
        context.close()


@pytest.fixture
def script(make_script: Callable[[], Script]) -> Script:
    return make_script()


def test_a_second_subscriber_gets_its_gap_and_nothing_that_was_on_its_way(script: Script) -> None:
    script.run("listen('first', 'a', 100)")
    script.open()
    script.say("subscribed", "a", 100)
    script.say_numbers("a", 101, 150)
    script.run("listen('second', 'a', 120)")
    assert script.sent[-2:] == [("unsubscribe", "a", None), ("subscribe", "a", 120)]
    script.say_numbers("a", 151, 151)  # the server had sent it already
    script.say("subscribed", "a", 120)
    script.say_numbers("a", 121, 152)
    assert script.got("first") == list(range(101, 153))
    assert script.got("second") == list(range(121, 153))


def test_a_subscriber_that_comes_before_the_answer_gets_its_gap(script: Script) -> None:
    script.run("listen('first', 'a')")
    script.open()
    script.run("listen('second', 'a', 90)")
    script.say("subscribed", "a", 100)
    assert script.sent[-2:] == [("unsubscribe", "a", None), ("subscribe", "a", 90)]
    script.say("subscribed", "a", 90)
    script.say_numbers("a", 91, 102)
    assert script.got("first") == [101, 102]
    assert script.got("second") == list(range(91, 103))


def test_who_missed_too_much_does_not_ask_for_it_for_ever(script: Script) -> None:
    script.run("listen('first', 'a', 90)")
    script.open()
    script.say("subscribed", "a", 200)
    script.say("missed", "a", 200)
    script.say_numbers("a", 201, 202)
    assert script.sent == [("subscribe", "a", 90)]
    assert script.got("first") == [201, 202]


def test_answers_to_a_subscription_that_was_given_up_do_not_count(script: Script) -> None:
    script.run("listen('other', 'b'); window.first = listen('first', 'a')")
    script.open()
    script.run("first.unsubscribe(); listen('second', 'a', 90)")
    script.say("subscribed", "a", 100)
    script.say_numbers("a", 101, 101)
    script.say("subscribed", "a", 90)
    script.say_numbers("a", 91, 101)
    assert script.got("first") == []
    assert script.got("second") == list(range(91, 102))


def test_an_event_stream_is_told_where_each_channel_resumes(script: Script) -> None:
    script.run(
        "window.EventSource = class { constructor(url) { window.stream = `${url}`; } close() {} };"
        "listen('first', 'a', 90); listen('second', 'b')"
    )
    for _ in range(3):
        script.run("sockets.at(-1).onclose({code: 1006})")
        script.page.wait_for_timeout(50)
    assert script.page.evaluate("stream").endswith("/cable?channel=a&since=90&channel=b&since=")


def test_a_server_that_accepts_and_closes_is_asked_more_and_more_rarely(script: Script) -> None:
    script.run("Math.random = () => 1; listen('first', 'a')")
    for _ in range(6):
        script.open()
        script.run("sockets.at(-1).onclose({code: 1006})")
        script.page.wait_for_timeout(50)
    assert script.page.evaluate("waits") == [1000, 2000, 4000, 8000, 16000, 30000]


def test_who_is_signed_out_waits_until_the_browser_has_the_new_cookie(script: Script) -> None:
    script.run("Math.random = () => 0; listen('first', 'a')")
    script.open()
    script.say("subscribed", "a", 1)
    script.run("sockets.at(-1).onclose({code: 4001})")
    assert 3000 in script.page.evaluate("waits")


def test_being_online_again_replaces_a_connection_that_looks_open(script: Script) -> None:
    script.run("listen('first', 'a', 5)")
    script.open()
    script.say("subscribed", "a", 5)
    script.say_numbers("a", 6, 7)
    script.run("window.dispatchEvent(new Event('online'))")
    assert script.page.evaluate("sockets.map((s) => !!s.isClosed)") == [True, False]
    script.open()
    assert script.sent == [("subscribe", "a", 7)]


def test_html_in_the_data_of_a_message_is_data(script: Script) -> None:
    script.run("listen('first', 'a')")
    script.open()
    script.say("subscribed", "a", 1)
    html = {"html": "<b id=there>hello</b>", "target": "#place", "swap": "beforeend"}
    script.say("message", "a", 2, {"render": html, **html})
    assert script.page.locator("#there").count() == 0
    script.say("render", "a", 3, html)
    assert script.page.locator("#place #there").inner_text() == "hello"
    script.run("document.addEventListener('cable:render', (event) => event.preventDefault())")
    script.say("render", "a", 4, {"html": "", "target": "#there", "swap": "delete"})
    assert script.page.locator("#there").count() == 1


def test_an_element_whose_channel_changes_is_subscribed_anew(script: Script) -> None:
    script.run("document.getElementById('place').dataset.cable = 'a'")
    script.open()
    script.say("subscribed", "a", 1)
    script.run("document.getElementById('place').dataset.cable = 'b'")
    script.page.wait_for_timeout(20)
    script.run(
        "const count = document.createElement('b'); count.dataset.cableCount = 'b';"
        "document.body.append(count)"
    )
    script.open()
    script.say("subscribed", "b", 1)
    script.say("presence", "b", 2, {"count": 7})
    assert script.page.locator("[data-cable-count]").inner_text() == "7"

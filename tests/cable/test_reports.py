from __future__ import annotations

import json
import time

import pytest

from flask_litestack.cable import reports

from .client import Client, wait_until
from .conftest import Site


def test_large_lists_of_users_are_told_less_often(
    site: Site, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports, "PRESENCE_RATE", 40)
    with Client(port, "/cable?user=ann") as ann:
        ann.subscribe("rooms/lobby")
        size = len(json.dumps(ann.read(), separators=(",", ":")))
        before = time.monotonic()
        with Client(port, "/cable?user=bob") as bob:
            bob.subscribe("rooms/lobby")
            assert ann.read()["data"]["count"] == 2
            assert time.monotonic() - before > size / 40 - 0.5


def test_blocked_handlers_hold_up_no_presence(site: Site, port: int) -> None:
    blocked = [Client(port) for _ in range(4)]
    for client in blocked:
        client.subscribe("posts/7")
    with Client(port) as reader:
        reader.subscribe("counted")
        assert reader.read()["data"] == {"count": 1}
        with Client(port) as other:
            other.subscribe("counted")
            wait_until(lambda: reader.read()["data"] == {"count": 2})
            for client in blocked:
                client.send(type="send", channel="posts/7", data="block")
        wait_until(lambda: reader.read()["data"] == {"count": 1})
    site.gate.set()
    for client in blocked:
        client.close()

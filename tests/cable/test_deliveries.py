"""Broadcasts that are sent in pieces."""

from __future__ import annotations

import pytest

from flask_litestack.cable import deliveries
from flask_litestack.cable.hub import Hub
from flask_litestack.cable.store import RowKind, Store

from .client import Client, wait_until
from .conftest import Site
from .stepped import stepped


def test_the_messages_that_wait_to_be_sent_are_limited_in_bytes(
    site: Site, port: int, elsewhere: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliveries, "CHUNK", 1)
    monkeypatch.setattr(deliveries, "MAX_DELIVERY_BYTES", 1_000_000)
    text = '"' + "x" * 99_000 + '"'
    with stepped(site) as hub, Client(port) as client:
        hub.subscribe(client, "posts/7")
        for _ in range(50):
            site.broadcast("posts/7", "x" * 99_000)
            elsewhere.append(RowKind.MESSAGE, "posts/7", text)
        most = 0
        while hub.hub.position < site.last_id() or hub.hub._deliveries:
            hub.hub._turn()
            most = max(most, hub.hub._deliveries._bytes)
            assert len(client.read()["data"]) == 99_000
        assert most < 1_000_000 + 4_500_000
        assert hub.hub._deliveries._bytes == 0


def test_who_subscribes_anew_during_a_broadcast_gets_it_once(
    site: Site, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    @site.litestack.channel("plain")
    def plain() -> bool:
        return True

    monkeypatch.setattr(deliveries, "CHUNK", 2)
    with stepped(site) as hub, Client(port) as a, Client(port) as b, Client(port) as last:
        for client in (a, b, last):
            hub.subscribe(client, "plain")
        since = site.last_id()
        site.broadcast("plain", "hello")
        hub.hub._catch_up()
        hub.hub._deliveries.send_some()  # to the first two
        last.send(type="unsubscribe", channel="plain")
        last.send(type="subscribe", channel="plain", since=since)
        # Neither sends the rest of the broadcast, which a turn would.
        client_last = next(reversed(hub.topic("plain").subscribers))
        wait_until(lambda: _read_all(hub.hub, client_last))
        hub.answer()
        hub.go_on()
        assert last.read()["type"] == "subscribed"
        assert last.read()["data"] == "hello"
        site.broadcast("plain", "next")
        assert last.read()["data"] == "next"


def _read_all(hub: Hub, client: object) -> bool:
    """Read what a client has sent, until its function is asked."""
    hub._connections.read(client)  # type: ignore[arg-type]
    return bool(client.busy)  # type: ignore[attr-defined]

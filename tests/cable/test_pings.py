"""Clients that say nothing, want nothing, or hear nothing for long."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from .client import Client
from .conftest import Site, served


def test_a_silent_client_is_dropped_and_one_that_answers_pings_is_kept(
    make_site: Callable[..., Site],
) -> None:
    site = make_site(cable_ping_interval=1)
    with served(site.app) as port, Client(port) as silent, Client(port) as alive:
        silent.subscribe("posts/7")
        alive.subscribe("posts/7")
        alive.socket.settimeout(0.2)
        deadline = time.monotonic() + 15
        while site.clients == 2:
            assert time.monotonic() < deadline
            with pytest.raises(TimeoutError):
                alive.read()
        assert alive.pings >= 2
        site.broadcast("posts/7", "hello")
        alive.socket.settimeout(10)
        assert alive.read()["data"] == "hello"


def test_a_client_without_subscription_is_closed(make_site: Callable[..., Site]) -> None:
    site = make_site(cable_ping_interval=1)
    with served(site.app) as port, Client(port) as idle:
        assert idle.read_until_close() == 1000


def test_a_quiet_client_is_told_the_position_so_that_it_can_resume_much_later(
    make_site: Callable[..., Site],
) -> None:
    site = make_site(cable_ping_interval=1)
    with served(site.app) as port, Client(port) as client:
        client.subscribe("posts/7")
        site.broadcast("posts/8", "for others")
        wanted = site.last_id()
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            opcode, payload = client.read_frame()
            if opcode == 1 and payload == b'{"type":"position","id":%d}' % wanted:
                return
            if opcode == 9:
                client.send_frame(0x8A)
        pytest.fail("no position came")

"""A hub that takes its turns when a test says so, for what can happen between two of them."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from flask_litestack.cable import clients
from flask_litestack.cable.hub import Hub

from .client import Client, wait_until
from .conftest import Site


class Stepped:
    """The site's own hub; its thread rests, and the test's thread does its work."""

    def __init__(self, site: Site) -> None:
        with site.app.app_context():
            self.hub: Hub = site.litestack.cable.hub()
        self._go_on = threading.Event()
        resting = threading.Event()

        def rest() -> None:
            resting.set()
            self._go_on.wait()

        # As a timer's work, which is the last of a turn.
        self.hub._loop.call(lambda: self.hub._loop.later(0.0, rest))
        assert resting.wait(10)

    def turn_until(self, condition: Callable[[], object]) -> None:
        """Take turns until something is so."""

        def turn() -> object:
            found = condition()
            if not found:
                self.hub._loop.later(0.01, lambda: None)  # a turn that waits no longer
                self.hub._turn()
            return found

        wait_until(turn)

    def subscribe(self, client: Client, channel: str, since: int | None = None) -> None:
        """Subscribe, and read the confirmation."""
        client.send(type="subscribe", channel=channel, since=since)
        before = len(self.topic(channel).subscribers)
        self.turn_until(lambda: len(self.topic(channel).subscribers) > before)
        assert client.read()["type"] == "subscribed"

    def begin_to_subscribe(self, client: Client, channel: str, since: int | None = None) -> None:
        """Subscribe to a channel whose function waits."""
        client.send(type="subscribe", channel=channel, since=since)
        self.turn_until(lambda: self.topic(channel).pending)

    def topic(self, channel: str) -> clients.Topic:
        return self.hub._topics.get(channel, clients.Topic())

    def answer(self) -> None:
        """Take the answer of a channel function, and do nothing else."""
        wait_until(lambda: self.hub._loop.called)
        self.hub._loop.run_calls()

    def go_on(self) -> None:
        self._go_on.set()


@contextmanager
def stepped(site: Site) -> Iterator[Stepped]:
    """Take the hub's turns in a block; afterwards it does so itself."""
    hub = Stepped(site)
    try:
        yield hub
    finally:
        hub.go_on()


def reset(client: Client) -> None:
    """Cut a connection so that the other side's next call fails."""
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()

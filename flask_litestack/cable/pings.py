"""Finds the clients that are gone or want nothing, and keeps the others connected."""

from __future__ import annotations

import itertools
import random
import selectors
import time

from . import protocol
from .clients import Client, State
from .connections import Connections
from .deliveries import Deliveries
from .frames import KINDS, Close, Kind, keep_alive
from .output import Output


class Pings:
    """Sends each client something regularly, but not all of them at once.

    :param interval: seconds between two pings.
    """

    def __init__(
        self,
        output: Output,
        deliveries: Deliveries,
        connections: Connections,
        chance: random.Random,
        *,
        interval: float,
    ) -> None:
        self._output = output
        self._deliveries = deliveries
        self._connections = connections
        self._chance = chance
        self._interval = max(1.0, interval)
        #: Second of the monotonic clock -> who is due then.
        self._due: dict[int, list[Client]] = {}

    def add(self, client: Client) -> None:
        """Begin to send pings to a client."""
        self._ping_later(client, self._interval * self._chance.uniform(0.5, 1.0))

    def send_due(self) -> None:
        """Ask the clients that are due whether they are still there; drop the silent ones."""
        now = int(time.monotonic())
        due = [second for second in self._due if second <= now]
        if not due:
            return
        position = self._deliveries.position
        # The position lets a client resume whose channels are quiet for longer than messages are
        # kept, and lets a page hear that the server is there: it does not see pings.
        # An event's id would take those back who have the present broadcast already.
        event_id = None if self._deliveries.begun else position
        frames = {kind: keep_alive(kind, protocol.position(position), event_id) for kind in KINDS}
        for client in itertools.chain.from_iterable(self._due.pop(second) for second in due):
            if client.state is not State.OPEN:
                continue
            paused = not client.watched & selectors.EVENT_READ
            if client.silence >= 2 and not paused:
                self._connections.drop(client)
                continue
            if client.kind is Kind.WEBSOCKET:
                client.silence += 1
            client.idle = 0 if client.subscriptions or client.busy else client.idle + 1
            if client.idle >= 2:
                self._connections.close(client, Close.NORMAL, "no subscription")
                continue
            self._ping_later(client, self._interval)
            self._output.send_bytes(client, frames[client.kind])

    def _ping_later(self, client: Client, seconds: float) -> None:
        self._due.setdefault(int(time.monotonic() + seconds), []).append(client)

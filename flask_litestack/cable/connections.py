"""The life of each connection: how it comes, what comes in, and how it ends."""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

from . import protocol, sockets
from .clients import Client, State
from .frames import BadFrame, Close, Closed, EventsParser, Kind, Opcode, Ping, closing, frame, retry
from .loop import Loop
from .output import Output
from .subscriptions import Subscriptions

log = logging.getLogger(__name__)

#: Seconds that a client has to take our good-bye.
GOODBYE = 3.0

#: Milliseconds after which browsers open an event stream again, at random between these.
RETRY = (1000, 5000)

#: Seconds that a handshake may take: a log-out meanwhile is remembered for as long.
HANDSHAKE = 60.0


class Connections:
    """The connected clients of this process.

    :param dismiss: called for each that has gone.
    """

    def __init__(
        self,
        loop: Loop,
        output: Output,
        subscriptions: Subscriptions,
        chance: random.Random,
        dismiss: Callable[[], object],
    ) -> None:
        self._loop = loop
        self._output = output
        self._subscriptions = subscriptions
        self._chance = chance
        self._dismiss = dismiss
        self._reader = sockets.Reader()
        self._clients: set[Client] = set()
        self._signed_out: dict[str, tuple[int, float]] = {}

    def __len__(self) -> int:
        return len(self._clients)

    def adopt(
        self,
        client: Client,
        handshake_at: int,
        early: bytes,
        requests: Sequence[protocol.Subscribe],
    ) -> None:
        """Serve a client from now on; the parameters are those of :meth:`Hub.adopt`."""
        self._clients.add(client)
        self._output.watch(client)
        if self._loop.stopping:
            self._send_away(client)
            return
        signed_out = self._signed_out.get(client.user)
        if signed_out is not None and signed_out[0] > handshake_at:
            self.close(client, Close.SIGNED_OUT, "signed out")
            return
        if client.kind is Kind.EVENTS:
            self._output.send_bytes(client, retry(self._chance.randint(*RETRY)))
            if len(requests) > 1:
                client.kind = Kind.FIRST_EVENTS
        if requests:
            self._subscriptions.requests.replace(client, requests)
        if early:
            self._receive(client, early)

    def read(self, client: Client) -> None:
        """Take what has arrived."""
        if client.state is State.CLOSED:
            return
        data = self._reader.read(client.fd)
        if data is None:
            return
        if not data:
            self.drop(client)
        elif client.state is State.OPEN:
            client.silence = 0
            self._receive(client, data)

    def _receive(self, client: Client, data: bytes) -> None:
        pong: bytes | None = None
        try:
            for item in client.parser.feed(data):
                if client.state is not State.OPEN:
                    return
                if isinstance(item, str):
                    self._subscriptions.requests.add(client, item)
                elif isinstance(item, Ping):
                    pong = item.payload  # of several only the last needs an answer
                elif isinstance(item, Closed):
                    code = item.code if item.code != 1005 else Close.NORMAL
                    self.close(client, code)
        except BadFrame as error:
            self.close(client, error.code, str(error))
        if pong is not None and client.state is State.OPEN:
            self._output.send_bytes(client, frame(Opcode.PONG, pong))

    # -- good-byes ----------------------------------------------------------------------------

    def close(self, client: Client, code: int, reason: str = "") -> None:
        """Say good-bye; the client gets a few seconds to take it."""
        if client.state is not State.OPEN:
            return
        client.state = State.CLOSING
        self._subscriptions.end_all(client)
        farewell = closing(client.kind, code, reason)
        if farewell:
            self._output.queue(client, farewell)
        self._output.flush(client)
        if client.state is State.CLOSING:
            self._loop.later(GOODBYE, partial(self.drop, client))

    def close_slow(self, client: Client) -> None:
        """Send a client away that does not take what it gets; it comes back for the rest."""
        self._output.forget_unsent(client)
        log.info("the cable sends a client away that is too slow (user %r)", client.user)
        self.close(client, Close.TRY_AGAIN_LATER, "too slow")

    def drop(self, client: Client) -> None:
        """Close a connection without another word."""
        if client.state is State.CLOSED:
            return
        was_open = client.state is State.OPEN
        client.state = State.CLOSED
        self._output.end(client)
        os.close(client.fd)
        self._clients.discard(client)
        self._dismiss()
        client.parser = EventsParser()
        if was_open:
            self._subscriptions.end_all(client)
        else:
            self._subscriptions.requests.advance(client)

    def sign_out(self, user: str, message_id: int) -> None:
        """Send a user's clients away, and those whose handshake began before this message."""
        now = time.monotonic()
        self._signed_out = {u: e for u, e in self._signed_out.items() if e[1] > now - HANDSHAKE}
        self._signed_out[user] = (message_id, now)
        for client in [client for client in self._clients if client.user == user]:
            self.close(client, Close.SIGNED_OUT, "signed out")

    def send_all_away(self) -> None:
        """Tell every client that we go away."""
        for client in list(self._clients):
            with suppress(Exception):
                self._send_away(client)

    def _send_away(self, client: Client) -> None:
        self.close(client, Close.GOING_AWAY, "the server restarts")

    def drop_all(self) -> None:
        """Close all that are left."""
        for client in list(self._clients):
            self.drop(client)

    def close_inherited(self) -> None:
        """Close a parent's sockets in its child after a fork, and tell nobody."""
        for client in self._clients:
            if client.state is not State.CLOSED:
                os.close(client.fd)

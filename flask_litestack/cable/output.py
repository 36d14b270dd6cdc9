"""Sends to clients; what their sockets do not take at once waits here."""

from __future__ import annotations

import selectors
from collections import deque
from collections.abc import Callable

from . import sockets
from .clients import MAX_INBOX, Client, State
from .frames import encode
from .loop import Loop


class Output:
    """The way to the clients, and what their sockets are watched for.

    :param buffer: bytes that may wait for one client.
    :param max_message: characters of requests that may wait, beyond which none are read.
    :param on_broken: called with a client whose connection is broken.
    :param on_slow: called with a client for which too much waits.
    """

    def __init__(
        self,
        loop: Loop,
        *,
        buffer: int,
        max_message: int,
        on_broken: Callable[[Client], object],
        on_slow: Callable[[Client], object],
    ) -> None:
        self._loop = loop
        self._buffer = buffer
        self._max_message = max_message
        self._on_broken = on_broken
        self._on_slow = on_slow

    def send(self, client: Client, text: bytes, event_id: int | None = None) -> None:
        """Send one JSON text; see :func:`~flask_litestack.cable.frames.encode`."""
        self.send_bytes(client, encode(client.kind, text, event_id))

    def send_bytes(self, client: Client, data: bytes) -> None:
        """Send, or queue what does not fit; a client with too much in its queue must go."""
        if client.state is not State.OPEN:
            return  # nothing may follow the good-bye
        sent = 0 if client.out else sockets.send(client.fd, data)
        if sent != len(data):
            self.send_rest(client, data, sent)

    def send_rest(self, client: Client, data: bytes, sent: int) -> None:
        """Queue what did not fit; ``sent`` is what :func:`sockets.send` returned."""
        if sent < 0:
            self._on_broken(client)
            return
        self.queue(client, data[sent:])
        if client.out_size > self._buffer:
            self._on_slow(client)

    def queue(self, client: Client, data: bytes) -> None:
        """Have it sent when the socket takes it."""
        if client.out is None:
            client.out = deque()
        client.out.append(data)
        client.out_size += len(data)
        self.watch(client)

    def forget_unsent(self, client: Client) -> None:
        """Forget what waits for a client, except for what may be sent in part."""
        assert client.out is not None
        first = client.out[0]
        client.out.clear()
        client.out.append(first)
        client.out_size = len(first)

    def flush(self, client: Client) -> None:
        """Send what waits, now that the socket takes it again."""
        while client.out:
            data = client.out[0]
            sent = sockets.send(client.fd, data)
            if sent < 0:
                self._on_broken(client)
                return
            client.out_size -= sent
            if sent < len(data):
                client.out[0] = data[sent:]
                return
            client.out.popleft()
        client.out = None
        if client.state is State.CLOSING:
            sockets.half_close(client.fd)
        self.watch(client)

    def watch(self, client: Client) -> None:
        """Watch for what can be done for a client, and for nothing else."""
        wanted = 0
        if client.out:
            wanted |= selectors.EVENT_WRITE
        full = client.inbox is not None and (
            len(client.inbox) >= MAX_INBOX or client.inbox_size >= self._max_message
        )
        if not full or client.state is State.CLOSING:
            wanted |= selectors.EVENT_READ
        if wanted == client.watched:
            return
        self._loop.watch(client.fd, client, wanted, client.watched)
        client.watched = wanted

    def end(self, client: Client) -> None:
        """Watch for nothing any more, and forget what waits, before the socket is closed."""
        if client.watched:
            self._loop.unwatch(client.fd)
            client.watched = 0
        client.out = None
        client.out_size = 0

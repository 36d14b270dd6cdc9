"""Keeps what each client wants in order: while the pool works for it, the rest waits."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from . import protocol
from .clients import Client, Leave, State
from .loop import Loop
from .output import Output
from .pool import Pool


class Requests:
    """The inboxes of the clients.

    :param pool: for what may take long.
    :param begin: begins what a client wants, and may call :meth:`on_pool`.
    :param on_rest: called when nothing that a client wanted is left to do.
    """

    def __init__(
        self,
        loop: Loop,
        output: Output,
        pool: Pool,
        begin: Callable[[Client, str | protocol.Subscribe | Leave], object],
        on_rest: Callable[[Client], object],
    ) -> None:
        self._loop = loop
        self._output = output
        self._pool = pool
        self._begin = begin
        self._on_rest = on_rest

    def add(self, client: Client, text: str) -> None:
        """Take what a client has sent."""
        if client.inbox is None:
            client.inbox = deque()
        client.inbox.append(text)
        client.inbox_size += len(text)
        self.advance(client)

    def replace(self, client: Client, items: Iterable[protocol.Subscribe | Leave]) -> None:
        """Forget what a client still wants, and do this."""
        client.inbox = deque(items)
        client.inbox_size = 0
        self.advance(client)

    def advance(self, client: Client) -> None:
        """Begin the client's next requests, in order; one that needs the pool holds the rest."""
        while client.inbox and not client.busy:
            item = client.inbox.popleft()
            if isinstance(item, str):
                client.inbox_size -= len(item)
            self._begin(client, item)
        if not client.inbox:
            client.inbox = None
            if not client.busy:
                self._on_rest(client)
        if client.state is not State.CLOSED:
            self._output.watch(client)

    def on_pool(
        self, client: Client, work: Callable[[], Any], then: Callable[[Any], object]
    ) -> None:
        """Run ``work`` on the pool, then ``then`` here with its result (None after an error)."""

        def done(result: Any) -> None:
            client.busy = False
            then(result)
            self.advance(client)

        def run() -> None:
            result = None
            try:
                result = work()
            finally:
                self._loop.call(partial(done, result))

        client.busy = True
        self._pool.submit(run)

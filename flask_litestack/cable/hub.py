"""One thread that serves all the sockets of a process.

It never waits for a client, a handler or a file for long: reads and writes do not block, channel
functions run on a pool, and a broadcast to many is cut into pieces between which everybody else
has a turn. It keeps the GIL while it sends (see sockets.py) and gives it up once a turn.

The hub is what other threads see of it, and the order of each turn. Of its parts, each knows only
what stands above it:

    loop.py           what it waits for: descriptors, calls of other threads, timers
    follower.py       what is new in the log
    peers.py          which other processes there are
    reports.py        what they and the subscribers are told of its clients
    output.py         what is sent to one client, and waits for its socket
    deliveries.py     what is sent to all subscribers of a channel
    requests.py       what a client wants, in order
    subscriptions.py  who gets what, from which message on
    connections.py    how clients come and go
    pings.py          who is still there

Messages reach a client in the order of their ids (see subscriptions.py).
"""

from __future__ import annotations

import json
import logging
import os
import random
import selectors
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from functools import partial

from ..process.liveness import Life
from . import protocol
from .backend import Backend
from .clients import Client, State, Topic
from .connections import Connections
from .deliveries import CHUNK, MAX_DELIVERIES, Deliveries
from .follower import Follower
from .frames import Kind, new_parser
from .loop import Loop
from .output import Output
from .peers import Peers
from .pings import Pings
from .pool import Pool
from .reports import Reports
from .store import MAX_NOTE, RUN_KIND, Row, RowKind, Store
from .subscriptions import Subscriptions

log = logging.getLogger(__name__)

#: Seconds between two looks into the log for which nobody woke us.
SWEEP = 2.0

#: Seconds that all clients have to take our good-bye when the process ends.
LAST_GOODBYE = 1.0

#: Seconds between two notes of how many clients there are, for other processes.
STATUS_INTERVAL = 5.0


class Hub:
    """The sockets of one app in this process.

    :param capacity: how many clients there can be.
    :param max_message: bytes of the largest message taken.
    :param buffer: bytes that may wait for one client.
    :param ping_interval: seconds between two pings.
    :param threads: the size of the pool.
    :raises OSError: if there are no descriptors left.
    """

    def __init__(
        self,
        store: Store,
        backend: Backend,
        *,
        capacity: int,
        max_message: int,
        buffer: int,
        ping_interval: float,
        threads: int,
    ) -> None:
        self._store = store
        self._backend = backend
        self._capacity = capacity
        self._max_message = max_message
        self._pool = Pool(threads, "litestack-cable")
        # The hub's own work waits for no handler.
        self._chores = Pool(1, "litestack-cable-chores")
        self._topics: dict[str, Topic] = {}

        # Shared with other threads:
        self._mutex = threading.Lock()
        self._admitted = 0
        self._local: deque[Row] = deque()
        self._ended = False

        with ExitStack() as opened:  # all, or none if there are no descriptors left
            self._loop = Loop()
            opened.callback(self._loop.close)
            self._life = Life(store.run_path, RUN_KIND)
            opened.callback(self._life.close)
            self._log = Follower(store)
            opened.pop_all()
        life, describe = self._life.name, backend.describe
        self._peers = Peers(self._loop, store, life, describe, self._chores)
        self._reports = Reports(
            self._loop, store, life, describe, self._topics, self._peers, self._chores
        )
        self._output = Output(
            self._loop,
            buffer=buffer,
            max_message=max_message,
            on_broken=lambda client: self._connections.drop(client),
            on_slow=lambda client: self._connections.close_slow(client),
        )
        self._deliveries = Deliveries(self._log, self._output)
        self._subscriptions = Subscriptions(
            self._loop,
            self._log,
            backend,
            self._pool,
            self._output,
            self._deliveries,
            self._reports,
            self._topics,
            buffer=buffer,
        )
        chance = random.Random()
        self._connections = Connections(
            self._loop, self._output, self._subscriptions, chance, self.dismiss
        )
        self._pings = Pings(
            self._output, self._deliveries, self._connections, chance, interval=ping_interval
        )
        self._loop.watch(self._log, self._log.wake)
        store.listen(self._on_append, self._log.mailbox)
        self._thread = threading.Thread(target=self._run, name="litestack-cable-hub", daemon=True)
        self._thread.start()

    # -- for other threads --------------------------------------------------------------------

    @property
    def position(self) -> int:
        """The id of the last message seen."""
        return self._log.position

    @property
    def clients(self) -> int:
        """How many clients there are."""
        return len(self._connections)

    @property
    def channels(self) -> int:
        """How many channels have subscribers here."""
        return len(self._topics)

    def admit(self) -> bool:
        """Reserve a place for a client; False if there is none. Give it back by :meth:`dismiss`."""
        with self._mutex:
            if self._loop.stopping or self._admitted >= self._capacity:
                return False
            self._admitted += 1
            return True

    def dismiss(self) -> None:
        """Give a place back that :meth:`adopt` did not use."""
        with self._mutex:
            self._admitted -= 1

    def adopt(
        self,
        fd: int,
        kind: Kind,
        *,
        user: str,
        environ: bytes,
        handshake_at: int,
        early: bytes = b"",
        requests: Iterable[protocol.Subscribe] = (),
    ) -> None:
        """Serve a connection from now on; the descriptor is the hub's.

        :param handshake_at: the hub's position before it was asked who the client is.
        :param early: what has been read from the socket already.
        :param requests: what the client wants, where its URL says so.
        """
        client = Client(fd, kind, new_parser(kind, self._max_message), user, environ)
        with self._mutex:
            if not self._ended:
                self._loop.call(partial(self._adopt, client, handshake_at, early, list(requests)))
                return
        os.close(fd)

    def say_goodbye(self) -> None:
        """Tell every client that we go away, and admit no more.

        It takes no lock and waits for nothing, so a signal handler may call it.
        """
        self._loop.stop()

    def stop(self) -> None:
        """Tell every client that we go away, and end the thread; takes a second at most."""
        self.say_goodbye()
        self._thread.join(LAST_GOODBYE + 1.0)

    def after_fork(self) -> None:
        """Close the parent's sockets in a child, which would keep connections half open."""
        self._connections.close_inherited()
        self._peers.close()
        self._loop.close()

    # -- the loop -----------------------------------------------------------------------------

    def _run(self) -> None:
        log.info("the cable's hub starts (pid %d)", os.getpid())
        self._loop.every(SWEEP, self._log.look)
        self._loop.every(STATUS_INTERVAL, self._note_status)
        self._peers.look()
        self._loop.every(1.0, self._pings.send_due)
        while not self._loop.stopping:
            try:
                self._turn()
            except Exception:
                log.exception("the cable's hub failed; it goes on")
                time.sleep(0.1)
        self._end()
        log.info("the cable's hub ends (pid %d)", os.getpid())

    def _turn(self) -> None:
        busy = self._deliveries or self._loop.called or self._local
        wait = 0.0 if busy else self._log.wait_at_most(self._loop.until_next_timer())
        events = self._loop.wait(wait)
        for start in range(0, len(events), CHUNK):
            for key, mask in events[start : start + CHUNK]:
                self._dispatch(key.data, mask)
            self._deliveries.send_some()
        self._loop.run_calls()
        if (self._log.news or self._local) and not self._deliveries.full:
            self._try_to_catch_up()
        self._deliveries.send_some()
        self._loop.run_timers()

    def _adopt(
        self, client: Client, handshake_at: int, early: bytes, requests: list[protocol.Subscribe]
    ) -> None:
        self._pings.add(client)
        self._connections.adopt(client, handshake_at, early, requests)

    def _note_status(self) -> None:
        self._reports.note_status(self.clients, self.channels)

    def _dispatch(self, ready: Client | Callable[[], object], mask: int) -> None:
        """Do what a descriptor is ready for."""
        if isinstance(ready, Client):
            self._serve(ready, mask)
        else:
            ready()

    def _serve(self, client: Client, mask: int) -> None:
        if client.state is State.CLOSED:
            return  # by what was served just before it
        try:
            if mask & selectors.EVENT_WRITE:
                self._output.flush(client)
            if mask & selectors.EVENT_READ:
                self._connections.read(client)
        except Exception:
            log.exception("the cable drops a client because of an error")
            self._connections.drop(client)

    # -- the log ------------------------------------------------------------------------------

    def _on_append(self, rows: Sequence[Row]) -> None:
        """Take what a thread of this process has just logged; runs on that thread."""
        for row in rows:
            if len(self._local) < MAX_DELIVERIES and len(row.data) < MAX_NOTE:
                self._local.append(row)
            else:
                self._log.look()
        self._loop.ring()

    def _try_to_catch_up(self) -> None:
        try:
            self._catch_up()
        except Exception:
            log.exception("the cable's hub cannot read its log; it tries again at the next sweep")
            self._local.clear()  # they are in the log, too, or gone with it

    def _catch_up(self) -> None:
        """Take what is new: from memory where nothing lies in between, else from the log."""
        local = self._local
        while local and local[0].id <= self._log.position + 1:
            row = local.popleft()
            if row.id > self._log.position:
                self._take(row)
        if not local and not self._log.news:
            return
        rows = self._log.read()
        if rows and rows[0].id != self._log.position + 1:
            self._missed_some(rows[0].id - 1)
        for row in rows:
            self._take(row)

    def _take(self, row: Row) -> None:
        self._log.position = row.id
        if row.kind == RowKind.DISCONNECT:
            self._connections.sign_out(json.loads(row.data), row.id)
            return
        self._subscriptions.take(row)

    def _missed_some(self, position: int) -> None:
        """Tell everybody that the log was trimmed before we read it, or begun anew."""
        log.warning("messages of the cable are gone that its hub has not read")
        self._log.position = position
        # What is still to be sent is older than that; the pages load their state anew.
        self._deliveries.clear()
        self._subscriptions.miss(position)
        # What was said of presence may be among it, or all of it gone with a damaged file.
        self._reports.repeat_all()

    # -- the end ------------------------------------------------------------------------------

    def _end(self) -> None:
        """Close every connection with 1001 and wait a moment until the clients have read it."""
        self._store.listen(None, None)
        self._connections.send_all_away()
        deadline = time.monotonic() + LAST_GOODBYE
        while self._connections and time.monotonic() < deadline:
            with suppress(Exception):
                for key, mask in self._loop.wait(max(0.0, deadline - time.monotonic())):
                    self._dispatch(key.data, mask)
                self._loop.run_calls()
        with self._mutex:
            self._ended = True
        self._loop.run_calls()  # a client may have come just now
        self._connections.drop_all()
        self._peers.close()
        with suppress(Exception):
            self._store.forget_processes([self._life.name], self._backend.describe)
        self._pool.stop()
        self._chores.stop()
        self._loop.close()
        self._log.close()
        self._life.close()

"""One thread that serves all the sockets of a process.

It never waits for a client, a handler or a file for long: reads and writes do not block, channel
functions run on a pool, and a broadcast to many is cut into pieces between which everybody else
has a turn. It keeps the GIL while it sends (see sockets.py) and gives it up once a turn.

Messages reach a client in the order of their ids. While a channel function decides about a
subscription, new messages are held; the decision comes back together with what the log has after
the client's ``since``, up to some id; what was held after that id follows, then live messages.
So nothing falls between, and nothing comes twice.
"""

from __future__ import annotations

import itertools
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
from . import protocol, sockets
from .backend import Backend
from .clients import Client, State, Topic
from .deliveries import CHUNK, MAX_DELIVERIES, Deliveries
from .follower import Follower
from .frames import (
    KINDS,
    BadFrame,
    Close,
    Closed,
    EventsParser,
    Kind,
    Opcode,
    Ping,
    closing,
    frame,
    keep_alive,
    new_parser,
    retry,
)
from .loop import Loop
from .output import Output
from .peers import Peers
from .pool import Pool
from .reports import Reports
from .store import MAX_NOTE, RUN_KIND, Row, RowKind, Store
from .subscriptions import Subscriptions

log = logging.getLogger(__name__)

#: Seconds between two looks into the log for which nobody woke us.
SWEEP = 2.0

#: Seconds that a client has to take our good-bye, and all of them when the process ends.
GOODBYE = 3.0
LAST_GOODBYE = 1.0

#: Seconds between two notes of how many clients there are, for other processes.
STATUS_INTERVAL = 5.0

#: Milliseconds after which browsers open an event stream again, at random between these.
RETRY = (1000, 5000)

#: Seconds that a handshake may take: a log-out meanwhile is remembered for as long.
HANDSHAKE = 60.0


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
        self._ping_interval = max(1.0, ping_interval)
        self._pool = Pool(threads, "litestack-cable")
        # The hub's own work waits for no handler.
        self._chores = Pool(1, "litestack-cable-chores")
        self._reader = sockets.Reader()
        self._random = random.Random()

        self._clients: set[Client] = set()
        self._topics: dict[str, Topic] = {}
        self._to_ping: dict[int, list[Client]] = {}
        self._signed_out: dict[str, tuple[int, float]] = {}

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
            on_broken=self._drop,
            on_slow=self._drop_slow,
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
        return len(self._clients)

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
        for client in self._clients:
            if client.state is not State.CLOSED:
                os.close(client.fd)
        self._peers.close()
        self._loop.close()

    # -- the loop -----------------------------------------------------------------------------

    def _run(self) -> None:
        log.info("the cable's hub starts (pid %d)", os.getpid())
        self._loop.every(SWEEP, self._log.look)
        self._loop.every(STATUS_INTERVAL, self._note_status)
        self._peers.look()
        self._loop.every(1.0, self._ping_quiet)
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
                self._read(client)
        except Exception:
            log.exception("the cable drops a client because of an error")
            self._drop(client)

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
            self._sign_out(json.loads(row.data), row.id)
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

    # -- a client's life ----------------------------------------------------------------------

    def _adopt(
        self, client: Client, handshake_at: int, early: bytes, requests: list[protocol.Subscribe]
    ) -> None:
        self._clients.add(client)
        self._output.watch(client)
        self._ping_later(client, self._ping_interval * self._random.uniform(0.5, 1.0))
        if self._loop.stopping:
            self._send_away(client)
            return
        signed_out = self._signed_out.get(client.user)
        if signed_out is not None and signed_out[0] > handshake_at:
            self._close(client, Close.SIGNED_OUT, "signed out")
            return
        if client.kind is Kind.EVENTS:
            self._output.send_bytes(client, retry(self._random.randint(*RETRY)))
            if len(requests) > 1:
                client.kind = Kind.FIRST_EVENTS
        if requests:
            self._subscriptions.requests.replace(client, requests)
        if early:
            self._receive(client, early)

    def _read(self, client: Client) -> None:
        if client.state is State.CLOSED:
            return
        data = self._reader.read(client.fd)
        if data is None:
            return
        if not data:
            self._drop(client)
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
                    self._close(client, code)
        except BadFrame as error:
            self._close(client, error.code, str(error))
        if pong is not None and client.state is State.OPEN:
            self._output.send_bytes(client, frame(Opcode.PONG, pong))

    def _close(self, client: Client, code: int, reason: str = "") -> None:
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
            self._loop.later(GOODBYE, partial(self._drop, client))

    def _send_away(self, client: Client) -> None:
        self._close(client, Close.GOING_AWAY, "the server restarts")

    def _drop_slow(self, client: Client) -> None:
        """Send a client away that does not take what it gets; it comes back for the rest."""
        self._output.forget_unsent(client)
        log.info("the cable sends a client away that is too slow (user %r)", client.user)
        self._close(client, Close.TRY_AGAIN_LATER, "too slow")

    def _drop(self, client: Client) -> None:
        """Close a connection without another word."""
        if client.state is State.CLOSED:
            return
        was_open = client.state is State.OPEN
        client.state = State.CLOSED
        self._output.end(client)
        os.close(client.fd)
        self._clients.discard(client)
        self.dismiss()
        client.parser = EventsParser()
        if was_open:
            self._subscriptions.end_all(client)
        else:
            self._subscriptions.requests.advance(client)

    def _ping_later(self, client: Client, seconds: float) -> None:
        self._to_ping.setdefault(int(time.monotonic() + seconds), []).append(client)

    def _ping_quiet(self) -> None:
        """Ask the clients that are due whether they are still there; drop the silent ones."""
        now = int(time.monotonic())
        due = [second for second in self._to_ping if second <= now]
        if not due:
            return
        position = self._deliveries.position
        # The position lets a client resume whose channels are quiet for longer than messages are
        # kept, and lets a page hear that the server is there: it does not see pings.
        # An event's id would take those back who have the present broadcast already.
        event_id = None if self._deliveries.begun else position
        frames = {kind: keep_alive(kind, protocol.position(position), event_id) for kind in KINDS}
        for client in itertools.chain.from_iterable(self._to_ping.pop(second) for second in due):
            if client.state is not State.OPEN:
                continue
            paused = not client.watched & selectors.EVENT_READ
            if client.silence >= 2 and not paused:
                self._drop(client)
                continue
            if client.kind is Kind.WEBSOCKET:
                client.silence += 1
            client.idle = 0 if client.subscriptions or client.busy else client.idle + 1
            if client.idle >= 2:
                self._close(client, Close.NORMAL, "no subscription")
                continue
            self._ping_later(client, self._ping_interval)
            self._output.send_bytes(client, frames[client.kind])

    def _sign_out(self, user: str, message_id: int) -> None:
        now = time.monotonic()
        self._signed_out = {u: e for u, e in self._signed_out.items() if e[1] > now - HANDSHAKE}
        self._signed_out[user] = (message_id, now)
        for client in [client for client in self._clients if client.user == user]:
            self._close(client, Close.SIGNED_OUT, "signed out")

    # -- housekeeping ---------------------------------------------------------------------------

    def _note_status(self) -> None:
        self._reports.note_status(self.clients, self.channels)

    # -- the end ------------------------------------------------------------------------------

    def _end(self) -> None:
        """Close every connection with 1001 and wait a moment until the clients have read it."""
        self._store.listen(None, None)
        for client in list(self._clients):
            with suppress(Exception):
                self._send_away(client)
        deadline = time.monotonic() + LAST_GOODBYE
        while self._clients and time.monotonic() < deadline:
            with suppress(Exception):
                for key, mask in self._loop.wait(max(0.0, deadline - time.monotonic())):
                    self._dispatch(key.data, mask)
                self._loop.run_calls()
        with self._mutex:
            self._ended = True
        self._loop.run_calls()  # a client may have come just now
        for client in list(self._clients):
            self._drop(client)
        self._peers.close()
        with suppress(Exception):
            self._store.forget_processes([self._life.name], self._backend.describe)
        self._pool.stop()
        self._chores.stop()
        self._loop.close()
        self._log.close()
        self._life.close()

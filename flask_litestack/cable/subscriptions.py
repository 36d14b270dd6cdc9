"""Who gets the messages of which channel, from which one on, and what clients ask for.

While a channel function decides about a subscription, new messages are held; the decision comes
back together with what the log has after the client's ``since``, up to some id; what was held
after that id follows, then live messages. So nothing falls between, and nothing comes twice.
"""

from __future__ import annotations

from functools import partial

from . import protocol
from .backend import Backend, Decision
from .clients import MAX_SUBSCRIPTIONS, Client, Held, Leave, Message, State, Topic
from .deliveries import Deliveries
from .follower import Follower
from .frames import Kind
from .loop import Loop
from .output import Output
from .pool import Pool
from .reports import Reports
from .requests import Requests
from .store import Row


class Subscriptions:
    """The subscriptions of all clients of this process.

    :param topics: filled here, for everybody who wants to know.
    :param pool: runs the app's functions.
    :param buffer: bytes that are held for one subscription.
    """

    def __init__(
        self,
        loop: Loop,
        log: Follower,
        backend: Backend,
        pool: Pool,
        output: Output,
        deliveries: Deliveries,
        reports: Reports,
        topics: dict[str, Topic],
        *,
        buffer: int,
    ) -> None:
        self._loop = loop
        self._log = log
        self._backend = backend
        self._output = output
        self._deliveries = deliveries
        self._reports = reports
        self._topics = topics
        self._buffer = buffer
        #: What the clients want.
        self.requests = Requests(loop, output, pool, self._begin, self._at_rest)

    def take(self, row: Row) -> None:
        """Have a message of the log sent to the subscribers of its channel."""
        topic = self._topics.get(row.channel)
        if topic is None:
            return
        message = Message(row)
        if message.is_presence:
            topic.news = message
        else:
            for held in topic.pending.values():
                held.add(message, self._buffer)
        if topic.subscribers:
            self._deliveries.add(topic, message)

    def miss(self, position: int) -> None:
        """Tell everybody that messages up to a position are gone."""
        for name, topic in list(self._topics.items()):
            for held in topic.pending.values():
                held.lose()
            for client, start in list(topic.subscribers.items()):
                if start < position:
                    self._output.send(client, protocol.missed(name, position))

    def end_all(self, client: Client) -> None:
        """End all of them with the connection; what the client still wanted is forgotten."""
        leaves = []
        for name, tell in client.subscriptions.items():
            self._end(client, name)
            if tell and not self._loop.stopping:
                leaves.append(Leave(name))
        client.subscriptions = {}
        self.requests.replace(client, leaves)

    # -- requests -----------------------------------------------------------------------------

    def _begin(self, client: Client, item: str | protocol.Subscribe | Leave) -> None:
        try:
            request = protocol.parse(item) if isinstance(item, str) else item
        except protocol.BadRequest as error:
            self._output.send(client, protocol.error(str(error)))
            return
        if isinstance(request, protocol.Subscribe):
            self._subscribe(client, request)
        elif isinstance(request, protocol.Unsubscribe):
            self._unsubscribe(client, request.channel)
        elif isinstance(request, protocol.Send):
            self._receive(client, request)
        else:
            self._tell_leave(client, request.channel)

    def _subscribe(self, client: Client, request: protocol.Subscribe) -> None:
        name = request.channel
        if name in client.subscriptions:
            self._output.send(client, protocol.error("already subscribed", name))
            return
        if len(client.subscriptions) >= MAX_SUBSCRIPTIONS:
            self._output.send(client, protocol.rejected(name, "too many channels"))
            return
        # From here on its messages are held, before the log is asked for older ones.
        self._topics.setdefault(name, Topic()).pending[client] = Held()
        self.requests.on_pool(
            client,
            partial(self._backend.subscribe, client, name, request.since),
            partial(self._decided, client, request, self._log.position),
        )

    def _decided(
        self,
        client: Client,
        request: protocol.Subscribe,
        position: int,
        decision: Decision | None,
    ) -> None:
        name = request.channel
        topic = self._topics[name]
        held = topic.pending.pop(client)
        refused = "error" if decision is None else decision.refused
        if client.state is not State.OPEN or refused is not None or decision is None:
            self._forget_if_empty(name, topic)
            if refused is not None:
                self._output.send(client, protocol.rejected(name, refused))
            return
        replay = decision.replay
        missed = not held.complete or (replay is not None and replay.missed)
        replayed = 0 if replay is None or missed else replay.last_id
        client.subscriptions[name] = decision.tell_leave
        topic.subscribers[client] = max(self._log.position, replayed)
        if decision.presence:
            # Before anything is sent: who is dropped then leaves what it has joined.
            self._reports.join(name, client.user)
        if not held.complete:
            position = self._log.position
        elif replay is not None and not replay.missed and request.since is not None:
            position = request.since
        self._output.send(client, protocol.subscribed(name, position, decision.data), position)
        if missed:
            self._output.send(client, protocol.missed(name, position))
        if replay is not None and not missed:
            for row in replay.rows:
                self._output.send_bytes(client, Message(row).frame(client.kind))
        for message in held.messages:
            if message.id > replayed:
                self._output.send_bytes(client, message.frame(client.kind))
        if decision.presence and topic.news is not None:
            # Without its id: a browser would resume from there, before what it has got.
            self._output.send(client, topic.news.text)

    def _unsubscribe(self, client: Client, name: str) -> None:
        tell = client.subscriptions.pop(name, None)
        if tell is None:
            self._output.send(client, protocol.error("not subscribed", name))
            return
        self._end(client, name)
        if tell:
            self._tell_leave(client, name)

    def _tell_leave(self, client: Client, name: str) -> None:
        work = partial(self._backend.leave, client, name)
        self.requests.on_pool(client, work, lambda _: None)

    def _receive(self, client: Client, request: protocol.Send) -> None:
        name = request.channel
        if name not in client.subscriptions:
            self._output.send(client, protocol.error("not subscribed", name))
            return

        def answer(reason: str | None) -> None:
            if reason is not None:
                self._output.send(client, protocol.error(reason, name))

        work = partial(self._backend.receive, client, name, request.data)
        self.requests.on_pool(client, work, answer)

    def _end(self, client: Client, name: str) -> None:
        topic = self._topics[name]
        del topic.subscribers[client]
        self._forget_if_empty(name, topic)
        self._reports.leave(name, client.user)

    def _forget_if_empty(self, name: str, topic: Topic) -> None:
        if not topic.subscribers and not topic.pending:
            del self._topics[name]

    # -- afterwards ---------------------------------------------------------------------------

    def _at_rest(self, client: Client) -> None:
        """Do what can be done once nothing that a client wanted is left to do."""
        if client.state is State.CLOSED:
            # It may be referred to until its next ping would be due.
            client.environ = b""
        elif client.state is State.OPEN and client.kind is Kind.FIRST_EVENTS:
            self._begin_ids(client)

    def _begin_ids(self, client: Client) -> None:
        """Let an event stream resume: it is decided about all channels of its URL."""
        position = self._deliveries.position
        starts = (self._topics[name].subscribers[client] for name in client.subscriptions)
        if self._deliveries.begun or any(start > position for start in starts):
            # It has got more than that: what others are just getting, or what we have not read.
            self._loop.later(0.05, partial(self.requests.advance, client))
            return
        client.kind = Kind.EVENTS
        self._output.send(client, protocol.position(position), position)

"""What the hub knows of one client, and of one channel's subscribers."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import IntEnum

from . import protocol
from .frames import KINDS, Kind, Parser, encode
from .store import Row, RowKind


class State(IntEnum):
    """Where a connection is in its life."""

    OPEN = 0
    CLOSING = 1
    """Our good-bye is on its way; what else comes in is thrown away."""
    CLOSED = 2


@dataclass(frozen=True, slots=True)
class Leave:
    """A subscription ended together with its connection."""

    channel: str


#: Requests of one client that wait for the one before; reading stops beyond, and when they are
#: as long as the longest message.
MAX_INBOX = 32

#: Channels of one client.
MAX_SUBSCRIPTIONS = 200


class Client:
    """One connection; only the hub's thread changes it.

    :param user: who it is, "" for nobody in particular.
    :param environ: what is kept of the handshake request, see handshake.py.
    """

    __slots__ = (
        "busy",
        "environ",
        "fd",
        "idle",
        "inbox",
        "inbox_size",
        "kind",
        "out",
        "out_size",
        "parser",
        "silence",
        "state",
        "subscriptions",
        "user",
        "watched",
    )

    def __init__(self, fd: int, kind: Kind, parser: Parser, user: str, environ: bytes) -> None:
        self.fd = fd
        self.kind = kind
        self.parser = parser
        self.user = user
        self.environ = environ
        self.state = State.OPEN
        #: Channel -> whether somebody wants to know when it is left.
        self.subscriptions: dict[str, bool] = {}
        #: What it has sent is parsed when it is its turn: as objects it can be twenty times as big.
        self.inbox: deque[str | protocol.Subscribe | Leave] | None = None
        #: Characters in there.
        self.inbox_size = 0
        #: A thread of the pool works for this client; its next request waits.
        self.busy = False
        #: What did not fit into the socket's buffer.
        self.out: deque[bytes] | None = None
        self.out_size = 0
        #: Pings without any sign of life since.
        self.silence = 0
        #: Pings without any subscription.
        self.idle = 0
        #: The events that the selector watches for.
        self.watched = 0


#: The entries of the log that clients get, and the type of the protocol's message.
_TYPES: dict[int, str] = {
    RowKind.MESSAGE: "message",
    RowKind.RENDER: "render",
    RowKind.PRESENCE: "presence",
}


class Message:
    """A message on its way out, framed once for each kind of client."""

    __slots__ = ("_frames", "channel", "id", "is_presence", "text")

    def __init__(self, row: Row) -> None:
        self.id = row.id
        self.channel = row.channel
        self.is_presence = row.kind == RowKind.PRESENCE
        self.text = protocol.message(row.channel, row.id, row.data, _TYPES[row.kind])
        self._frames: list[bytes | None] = [None] * len(KINDS)

    def frame(self, kind: Kind) -> bytes:
        """Return the bytes for a kind of client."""
        framed = self._frames[kind]
        if framed is None:
            framed = self._frames[kind] = encode(kind, self.text, self.id)
        return framed

    def __len__(self) -> int:
        return len(self.text)


class Held:
    """The messages that came while it was not yet decided whether a client may have them."""

    __slots__ = ("complete", "messages", "size")

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.size = 0
        self.complete = True

    def add(self, message: Message, limit: int) -> None:
        """Keep one more, or none at all when they are more than ``limit`` bytes."""
        self.size += len(message)
        if self.size > limit:
            self.lose()
        elif self.complete:
            self.messages.append(message)

    def lose(self) -> None:
        """Note that some are missing."""
        self.complete = False
        self.messages.clear()


class Topic:
    """The subscribers in this process of one channel."""

    __slots__ = ("news", "pending", "reported_at", "subscribers")

    def __init__(self) -> None:
        #: Client -> the id of the last message it needs no more.
        self.subscribers: dict[Client, int] = {}
        self.pending: dict[Client, Held] = {}
        #: The latest presence message.
        self.news: Message | None = None
        #: When this process last told of its members.
        self.reported_at = 0.0

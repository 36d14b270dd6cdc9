"""The broadcasts that wait to be sent: each to many clients, and in pieces.

Between two pieces everybody else has a turn. It keeps the GIL while it sends (see sockets.py).
"""

from __future__ import annotations

from collections import deque

from . import sockets
from .clients import Client, Message, Topic
from .follower import Follower
from .frames import KINDS
from .output import Output

#: Clients served in one go before the others, and the other threads, have a turn: sending to so
#: many takes less than the interpreter's switch interval of 5 ms.
CHUNK = 128

#: Messages waiting to be sent, and their bytes, beyond which the log is not read further.
MAX_DELIVERIES = 1000
MAX_DELIVERY_BYTES = 8 * 1024 * 1024


class Deliveries:
    """Messages on their way to the subscribers, in the order of their ids."""

    def __init__(self, log: Follower, output: Output) -> None:
        self._log = log
        self._output = output
        self._waiting: deque[tuple[Topic, Message]] = deque()
        self._bytes = 0
        self._targets: list[Client] | None = None
        self._next_target = 0

    def __bool__(self) -> bool:
        return bool(self._waiting)

    @property
    def full(self) -> bool:
        """Whether no more should be added now."""
        return len(self._waiting) >= MAX_DELIVERIES or self._bytes >= MAX_DELIVERY_BYTES

    @property
    def begun(self) -> bool:
        """Whether some of its subscribers have got the present message, and others have not."""
        return self._targets is not None

    @property
    def position(self) -> int:
        """The id up to which every client has got everything."""
        return self._waiting[0][1].id - 1 if self._waiting else self._log.position

    def add(self, topic: Topic, message: Message) -> None:
        """Have a message sent to the subscribers."""
        self._waiting.append((topic, message))
        self._bytes += len(message)

    def clear(self) -> None:
        """Send nothing of what waits."""
        self._waiting.clear()
        self._bytes = 0
        self._targets = None

    def send_some(self) -> None:
        """Send up to CHUNK frames of the messages that wait."""
        budget = CHUNK
        while budget > 0 and self._waiting:
            topic, message = self._waiting[0]
            if self._targets is None:
                self._targets = list(topic.subscribers)
                self._next_target = 0
            start = self._next_target
            end = self._next_target = min(start + budget, len(self._targets))
            budget -= end - start + 1
            self._send_to(topic, message, self._targets[start:end])
            if end == len(self._targets):
                self._targets = None
                self._waiting.popleft()
                self._bytes -= len(message)

    def _send_to(self, topic: Topic, message: Message, targets: list[Client]) -> None:
        # The innermost loop of a broadcast.
        send = sockets.send
        message_id = message.id
        frames = [message.frame(kind) for kind in KINDS]
        start_of = topic.subscribers.get
        for client in targets:
            # Since the broadcast began it may have gone, or have come back with another start.
            if start_of(client, message_id) >= message_id:
                continue
            data = frames[client.kind]
            sent = 0 if client.out else send(client.fd, data)
            if sent != len(data):
                self._output.send_rest(client, data, sent)

"""How messages look on the wire: websocket frames, server-sent events, lines.

Three kinds of clients hang on one hub. Each kind turns a JSON text into bytes once, whoever many
clients get it, and parses what comes in.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

#: Empty ping frame, as the server sends it: unmasked.
PING = b"\x89\x00"


#: Begins the line that is no JSON but the code to close with.
LINE_CLOSE = b"\0"


class Kind(IntEnum):
    """How a client is connected."""

    WEBSOCKET = 0
    EVENTS = 1
    """Server-sent events: nothing comes in."""
    LINES = 2
    """One JSON text a line; the other end is a thread of flask-sock in this process."""
    FIRST_EVENTS = 3
    """Server-sent events without ids: one id resumes all channels of the URL, so there is none
    until it is decided about all of them."""


#: Iterating over the enumeration itself takes five times as long.
KINDS = tuple(Kind)


class Opcode(IntEnum):
    """The kinds of frames that the server sends (RFC 6455, section 11.8)."""

    TEXT = 1
    CLOSE = 8
    PONG = 10


class Close(IntEnum):
    """The close codes that the server sends (RFC 6455, section 7.4, and one of our own)."""

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    UNSUPPORTED = 1003
    TOO_BIG = 1009
    TRY_AGAIN_LATER = 1013
    SIGNED_OUT = 4001


class BadFrame(Exception):
    """What came in breaks the protocol; the connection is closed with ``code``."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


@dataclass(frozen=True, slots=True)
class Ping:
    """The client asks for a pong with the same payload."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class Closed:
    """The client says good-bye."""

    code: int


def encode(kind: Kind, text: bytes, event_id: int | None = None) -> bytes:
    """Frame one JSON text for a kind of client.

    :param event_id: lets a client of server-sent events resume after this message.
    """
    if kind is Kind.WEBSOCKET:
        return frame(Opcode.TEXT, text)
    if kind is Kind.LINES:
        return text + b"\n"
    head = b"" if event_id is None or kind is Kind.FIRST_EVENTS else b"id: %d\n" % event_id
    return head + b"data: " + text.replace(b"\n", b"\ndata: ") + b"\n\n"


def frame(opcode: Opcode, payload: bytes) -> bytes:
    """Build one unmasked, unfragmented websocket frame."""
    size = len(payload)
    first = 0x80 | int(opcode)
    if size < 126:
        return struct.pack("!BB", first, size) + payload
    if size < 65536:
        return struct.pack("!BBH", first, 126, size) + payload
    return struct.pack("!BBQ", first, 127, size) + payload


def retry(milliseconds: int) -> bytes:
    """Tell a browser how long to wait before it connects its event stream again."""
    return b"retry: %d\n\n" % milliseconds


def keep_alive(kind: Kind, text: bytes, event_id: int | None) -> bytes:
    """Build what a client is sent regularly: the position, and a ping where there are pings."""
    framed = encode(kind, text, event_id)
    return PING + framed if kind is Kind.WEBSOCKET else framed


def closing(kind: Kind, code: int, reason: str = "") -> bytes:
    """Build the good-bye."""
    if kind is Kind.WEBSOCKET:
        return frame(Opcode.CLOSE, struct.pack("!H", code) + reason.encode()[:123])
    if kind is Kind.LINES:
        return LINE_CLOSE + b"%d\n" % code
    return b""


class LineParser:
    """The incoming half of a client behind flask-sock: one JSON text a line."""

    __slots__ = ("_limit", "_rest")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[str | Ping | Closed]:
        """Yield the whole lines."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            yield line.decode()
        if len(self._rest) > self._limit:
            raise BadFrame(Close.TOO_BIG, f"more than {self._limit} bytes")


class EventsParser:
    """A client of server-sent events has nothing to say."""

    __slots__ = ()

    def feed(self, data: bytes) -> Iterator[str | Ping | Closed]:
        """Ignore it."""
        return iter(())


class Parser(Protocol):
    """The incoming half of one client."""

    def feed(self, data: bytes) -> Iterator[str | Ping | Closed]:
        """Yield what ``data`` completes.

        :raises BadFrame: where the client must be sent away.
        """


def new_parser(kind: Kind, limit: int) -> Parser:
    """Make the parser for a client; ``limit`` is the largest message in bytes."""
    if kind is Kind.WEBSOCKET:
        from .websocket import WebSocketParser  # not before the first one: it brings wsproto, h11

        return WebSocketParser(limit)
    return LineParser(limit) if kind is Kind.LINES else EventsParser()

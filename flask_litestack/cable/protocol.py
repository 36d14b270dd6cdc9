"""The JSON messages between client and server, version 1; docs/cable.md describes them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, NoReturn

#: In the websocket's subprotocol, and in the documentation.
VERSION = 1

#: The websocket subprotocol; a client may ask for it, to be told when it is too old.
SUBPROTOCOL = f"litestack.cable.v{VERSION}"

#: JavaScript counts exactly up to here.
MAX_ID = 2**53 - 1


class BadRequest(ValueError):
    """What a client sent is no request of the protocol."""


@dataclass(frozen=True, slots=True)
class Subscribe:
    """The client wants a channel, with what it has missed after ``since`` if that is given."""

    channel: str
    since: int | None = None


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    """The client no longer wants a channel."""

    channel: str


@dataclass(frozen=True, slots=True)
class Send:
    """The client has something to say on a channel it is subscribed to."""

    channel: str
    data: Any


Request = Subscribe | Unsubscribe | Send


def parse(text: str) -> Request:
    """Read what a client sent.

    :raises BadRequest: with a message for the author of the client.
    """
    try:
        request = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise BadRequest("not JSON") from None
    if not isinstance(request, dict):
        raise BadRequest("not a JSON object")
    channel = request.get("channel")
    if not isinstance(channel, str):
        raise BadRequest("'channel' must be a string")
    kind = request.get("type")
    if kind == "subscribe":
        since = request.get("since")
        if since is not None and (type(since) is not int or not 0 <= since <= MAX_ID):
            raise BadRequest("'since' must be the id of a message")
        return Subscribe(channel, since)
    if kind == "unsubscribe":
        return Unsubscribe(channel)
    if kind == "send":
        if "data" not in request:
            raise BadRequest("'data' is missing")
        return Send(channel, request["data"])
    raise BadRequest("'type' must be subscribe, unsubscribe or send")


def message(channel: str, message_id: int, data: str, kind: str = "message") -> bytes:
    """Build what subscribers get; ``data`` is JSON already.

    :param kind: "message", a broadcast; "render", HTML that the app has rendered for the page;
        "presence", who is on the channel.
    """
    return b'{"type":"%b","channel":%b,"id":%d,"data":%b}' % (
        kind.encode(),
        _quoted(channel),
        message_id,
        data.encode(),
    )


def subscribed(channel: str, message_id: int, data: str | None) -> bytes:
    """Build the confirmation: everything after ``message_id`` follows."""
    tail = b"" if data is None else b',"data":' + data.encode()
    return b'{"type":"subscribed","channel":%b,"id":%d%b}' % (_quoted(channel), message_id, tail)


def rejected(channel: str, reason: str) -> bytes:
    """Build the refusal of a subscription."""
    return _object(type="rejected", channel=channel, reason=reason)


def missed(channel: str, message_id: int) -> bytes:
    """Build the news that messages up to this id are gone: the page must load its state anew."""
    return _object(type="missed", channel=channel, id=message_id)


def position(message_id: int) -> bytes:
    """Build the news that everything up to this id was sent, on all channels of the client."""
    return b'{"type":"position","id":%d}' % message_id


def error(reason: str, channel: str | None = None) -> bytes:
    """Build the answer to a request that failed."""
    if channel is None:
        return _object(type="error", reason=reason)
    return _object(type="error", channel=channel, reason=reason)


def _object(**members: object) -> bytes:
    return json.dumps(members, separators=(",", ":")).encode()


def _quoted(text: str) -> bytes:
    return json.dumps(text).encode()


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")

"""Carries the cable where the connection cannot be taken over: TLS in the server, other servers.

A thread each, as with flask-sock alone. The thread stands between the client and the hub, which
it is connected to by a socket pair.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from flask import Response
from flask_sock import Sock
from simple_websocket import ConnectionClosed

from .frames import LINE_CLOSE, Close, Kind

#: Seconds after which a thread looks whether its connection is closed: simple-websocket does not
#: always wake it, e.g. not when it closes because of a message that is too big.
LOOK = 2.0


def serve(
    kind: Kind, adopt: Callable[[int, Kind], None], environ: dict[str, Any], max_message: int
) -> Response:
    """Connect this request to the hub and serve it until the client goes.

    :param max_message: bytes of the largest message taken.
    :raises OSError: if there are no descriptors left; nothing has happened then.
    """
    ours, hubs = socket.socketpair()
    hubs.setblocking(False)
    if kind is Kind.EVENTS:
        adopt(hubs.detach(), Kind.EVENTS)
        headers = {"Cache-Control": "no-store, no-transform", "X-Accel-Buffering": "no"}
        response = Response(_events(ours), mimetype="text/event-stream", headers=headers)
        response.call_on_close(ours.close)
        return response
    # Some bytes of a compressed message can be any number of bytes: none is agreed upon.
    environ.pop("HTTP_SEC_WEBSOCKET_EXTENSIONS", None)
    adopt(hubs.detach(), Kind.LINES)
    try:
        view: Callable[[socket.socket, int], Response] = _sock_view()
        return view(ours, max_message)
    except OSError:
        return Response(status=400)  # the client is gone during the handshake
    finally:
        ours.close()


def _events(ours: socket.socket) -> Iterator[bytes]:
    while data := ours.recv(65536):
        yield data


def _sock_view() -> Any:
    """Have flask-sock make a view of :func:`_carry`, without a URL of its own."""
    made: list[Any] = []

    class Routes:
        def route(self, path: str, **options: Any) -> Callable[[Any], None]:
            return made.append

    Sock().route("", bp=Routes())(_carry)
    return made[0]


def _carry(ws: Any, ours: socket.socket, max_message: int) -> None:
    """Pass on what the client says; another thread passes on what it gets."""
    ws.max_message_size = max_message
    threading.Thread(
        target=_pass_on, args=(ws, ours), name="litestack-cable-sender", daemon=True
    ).start()
    try:
        while True:
            text = ws.receive(timeout=LOOK)
            if text is None:
                continue
            if isinstance(text, bytes):
                ws.close(Close.UNSUPPORTED, "text frames only")
                return
            # In JSON a line break is space, or else an error.
            ours.sendall(text.replace("\n", " ").encode() + b"\n")
    except OSError:
        return  # the hub has closed its end
    finally:
        with suppress(OSError):
            ours.shutdown(socket.SHUT_RDWR)


def _pass_on(ws: Any, ours: socket.socket) -> None:
    code = int(Close.GOING_AWAY)
    with suppress(ConnectionClosed, OSError), ours.makefile("rb") as lines:
        for line in lines:
            if line.startswith(LINE_CLOSE):
                code = int(line[1:])
                break
            ws.send(line[:-1].decode())
    with suppress(ConnectionClosed, OSError):
        ws.close(code)

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


def serve(kind: Kind, adopt: Callable[[int, Kind], None]) -> Response:
    """Connect this request to the hub and serve it until the client goes.

    :raises OSError: if there are no descriptors left.
    """
    ours, hubs = socket.socketpair()
    hubs.setblocking(False)
    if kind is Kind.EVENTS:
        adopt(hubs.detach(), Kind.EVENTS)
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        response = Response(_events(ours), mimetype="text/event-stream", headers=headers)
        response.call_on_close(ours.close)
        return response
    adopt(hubs.detach(), Kind.LINES)
    try:
        view: Callable[[socket.socket], Response] = _sock_view()
        return view(ours)
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


def _carry(ws: Any, ours: socket.socket) -> None:
    """Pass on what the client says; another thread passes on what it gets."""
    threading.Thread(
        target=_pass_on, args=(ws, ours), name="litestack-cable-sender", daemon=True
    ).start()
    try:
        while True:
            text = ws.receive()
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

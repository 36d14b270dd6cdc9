"""The URLs of the cable: websockets, event streams and cable.js."""

from __future__ import annotations

import errno
import logging
from functools import partial
from typing import TYPE_CHECKING

from flask import Flask, Response, abort, request
from werkzeug.exceptions import ServiceUnavailable

from ..errors import ChannelError
from . import handshake, protocol, script, sockets, threaded
from .clients import MAX_SUBSCRIPTIONS
from .frames import Kind
from .handover import Handover, client_socket

if TYPE_CHECKING:
    from .cable import Cable

log = logging.getLogger(__name__)

#: Seconds after which a client that was refused for lack of room may try again.
RETRY_AFTER = 5


def add_routes(app: Flask, url: str, cable: Cable) -> None:
    """Register the URLs with an app."""

    def websocket() -> Response:
        return _open(cable, Kind.WEBSOCKET)

    def events() -> Response:
        return _open(cable, Kind.EVENTS)

    app.add_url_rule(url, "litestack_cable_websocket", websocket, websocket=True)
    app.add_url_rule(url, "litestack_cable", events, methods=["GET"])
    app.add_url_rule(f"{url}/cable-<version>.js", script.ENDPOINT, script.serve)


def _open(cable: Cable, kind: Kind) -> Response:
    if not sockets.AVAILABLE:
        abort(501, "the cable needs a POSIX system")
    if request.method != "GET":
        return Response(mimetype="text/event-stream")
    settings = cable.settings
    handshake.check_origin(request, settings.cable_origins)
    if kind is Kind.WEBSOCKET:
        head = handshake.accept(request)
        requests: list[protocol.Request] = []
    else:
        head = handshake.EVENT_STREAM
        requests = _requests_of_url(cable)
    try:
        hub = cable.hub()
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise _full(error) from error
        raise
    # Whoever signs out while this request runs is found by its position.
    position = hub.position
    user = cable.who()
    if user is False:
        abort(403)
    assert isinstance(user, str)
    environ = handshake.keep(request.environ)
    if not hub.admit():
        raise _full()
    adopt = partial(hub.adopt, user=user, environ=environ, handshake_at=position, requests=requests)
    server_socket = client_socket(request.environ)
    try:
        if server_socket is None:
            limit = settings.cable_max_message
            return threaded.serve(kind, adopt, request.environ, limit)
        handover = Handover(request.environ, server_socket)
    except OSError as error:
        hub.dismiss()
        raise _full(error) from error
    try:
        early = handover.take(head)
    except OSError:
        handover.cancel()
        hub.dismiss()
        return Response(status=400)  # nobody is there to read it
    adopt(handover.fd, kind, early=early)
    response = Response(status=101 if kind is Kind.WEBSOCKET else 200)
    response.headers["Connection"] = "close"
    response.call_on_close(handover.finish)
    return response


def _requests_of_url(cable: Cable) -> list[protocol.Request]:
    """Read ``?channel=posts/7&channel=news&since=123``; a reconnecting browser's id goes first."""
    names = request.args.getlist("channel")[:MAX_SUBSCRIPTIONS]
    if not names:
        abort(400, "name at least one channel: ?channel=...")
    text = request.headers.get("Last-Event-ID") or request.args.get("since") or ""
    since = int(text) if text.isascii() and text.isdigit() and len(text) < 17 else None
    for name in names:
        try:
            cable.known(name)
        except ChannelError:
            abort(404, "unknown channel")
    return [protocol.Subscribe(name, since) for name in dict.fromkeys(names)]


def _full(error: OSError | None = None) -> ServiceUnavailable:
    if error is not None:
        log.warning("the cable has no descriptor for another client: %s", error)
    return ServiceUnavailable("no room for another client", retry_after=RETRY_AFTER)

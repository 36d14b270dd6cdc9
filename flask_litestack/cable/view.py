"""The URLs of the cable: websockets, event streams and cable.js."""

from __future__ import annotations

import errno
import logging
from functools import partial
from typing import TYPE_CHECKING

from flask import Flask, Response, abort, request
from werkzeug.exceptions import ServiceUnavailable

from . import handshake, protocol, script, sockets
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
        requests: list[protocol.Subscribe] = []
    else:
        head = handshake.EVENT_STREAM
        requests = _requests_of_url()
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
            from . import threaded  # other servers than gunicorn and Werkzeug need flask-sock

            limit = settings.cable_max_message
            return threaded.serve(kind, adopt, request.environ, limit)
        handover = Handover(request.environ, server_socket)
    except OSError as error:
        hub.dismiss()
        raise _full(error) from error
    try:
        # Clients of an event stream answer no pings.
        early = handover.take(head, patience=2 * max(1.0, settings.cable_ping_interval))
    except OSError:
        handover.cancel()
        hub.dismiss()
        return Response(status=400)  # nobody is there to read it
    adopt(handover.fd, kind, early=early)
    response = Response(status=101 if kind is Kind.WEBSOCKET else 200)
    response.headers["Connection"] = "close"
    response.call_on_close(handover.finish)
    return response


def _requests_of_url() -> list[protocol.Subscribe]:
    """Read ``?channel=posts/7&since=90&channel=news&since=``: an id for each, or one for all.

    The id of a browser that comes back goes first.
    """
    names = request.args.getlist("channel")
    sinces = request.args.getlist("since") or [""]
    if last := request.headers.get("Last-Event-ID"):
        sinces = [last]
    if len(sinces) == 1:
        sinces *= len(names)
    if not names:
        abort(400, "name at least one channel: ?channel=...")
    if len(sinces) != len(names):
        abort(400, "give one since for each channel, or one for all")
    wanted: dict[str, protocol.Subscribe] = {}
    for name, since in zip(names[:MAX_SUBSCRIPTIONS], sinces, strict=False):
        wanted.setdefault(name, protocol.Subscribe(name, _id(since)))
    return list(wanted.values())


def _id(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 17 else None


def _full(error: OSError | None = None) -> ServiceUnavailable:
    if error is not None:
        log.warning("the cable has no descriptor for another client: %s", error)
    return ServiceUnavailable("no room for another client", retry_after=RETRY_AFTER)

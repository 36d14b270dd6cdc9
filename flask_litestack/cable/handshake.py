"""The opening handshake: who may connect from where, and what is kept of the request."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import json
import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from werkzeug.exceptions import BadRequest, Forbidden, HTTPException, RequestHeaderFieldsTooLarge
from werkzeug.wrappers import Request

from ..errors import ConfigError
from .protocol import SUBPROTOCOL

#: Of RFC 6455, section 1.3.
GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

#: The head of a response with server-sent events.
EVENT_STREAM = (
    b"HTTP/1.1 200 OK\r\n"
    b"Content-Type: text/event-stream; charset=utf-8\r\n"
    b"Cache-Control: no-store, no-transform\r\n"
    b"X-Accel-Buffering: no\r\n"
    b"Connection: close\r\n\r\n"
)

#: The most bytes kept of a request, for as long as the connection lives.
MAX_ENVIRON = 16 * 1024

#: Of no use after the handshake.
_TRANSPORT = {
    "HTTP_ACCEPT",
    "HTTP_ACCEPT_ENCODING",
    "HTTP_CACHE_CONTROL",
    "HTTP_LAST_EVENT_ID",
    "HTTP_PRAGMA",
    "HTTP_SEC_WEBSOCKET_EXTENSIONS",
    "HTTP_SEC_WEBSOCKET_KEY",
    "HTTP_SEC_WEBSOCKET_PROTOCOL",
    "HTTP_SEC_WEBSOCKET_VERSION",
}

_KEPT = {
    "PATH_INFO",
    "QUERY_STRING",
    "REMOTE_ADDR",
    "REMOTE_PORT",
    "SCRIPT_NAME",
    "SERVER_NAME",
    "SERVER_PORT",
    "SERVER_PROTOCOL",
}

_ORIGIN = re.compile(r"(?:[a-z][a-z0-9+.-]*://)?([^/\s]+)/?", re.IGNORECASE)


class UpgradeRequired(HTTPException):
    """426: the client speaks another version of the websocket protocol."""

    code = 426
    description = "version 13 of the websocket protocol is needed"

    def get_headers(self, environ: Any = None, scope: Any = None) -> list[tuple[str, str]]:
        """Name the version, as RFC 6455, section 4.4, asks."""
        return [*super().get_headers(environ, scope), ("Sec-WebSocket-Version", "13")]


def accept(request: Request) -> bytes:
    """Check a websocket handshake and build the 101 that accepts it.

    :raises HTTPException: 400 for a malformed one, 426 for another version.
    """
    headers = request.headers
    if request.method != "GET" or request.environ["SERVER_PROTOCOL"] == "HTTP/1.0":
        raise BadRequest("a websocket begins with GET over HTTP/1.1")
    if headers.get("Sec-WebSocket-Version", "").strip() != "13":
        raise UpgradeRequired
    key = headers.get("Sec-WebSocket-Key", "").strip()
    try:
        valid = len(base64.b64decode(key, validate=True)) == 16
    except (binascii.Error, ValueError):
        valid = False
    if not valid:
        raise BadRequest("Sec-WebSocket-Key must be 16 bytes in base64")
    answer = base64.b64encode(hashlib.sha1((key + GUID).encode()).digest()).decode()
    lines = [
        "HTTP/1.1 101 Switching Protocols",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Accept: {answer}",
    ]
    offered = headers.get("Sec-WebSocket-Protocol", "")
    if SUBPROTOCOL in (protocol.strip() for protocol in offered.split(",")):
        lines.append(f"Sec-WebSocket-Protocol: {SUBPROTOCOL}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def check_origin(request: Request, allowed: Iterable[str]) -> None:
    """Refuse pages of other sites; who sends no Origin is no browser and is let in.

    Host and port must be the request's own, or one of ``allowed``; the scheme does not count, as
    a proxy may have changed it.

    :raises Forbidden: otherwise.
    """
    origin = request.headers.get("Origin")
    if origin is None or "*" in allowed:
        return
    host = host_of(origin)
    if host is None or host not in {host_of(request.host), *map(host_of, allowed)}:
        raise Forbidden("this origin may not connect")


def check_origins(allowed: Iterable[str]) -> None:
    """Check the setting.

    :raises ConfigError: for something that is no origin.
    """
    for origin in allowed:
        if origin != "*" and host_of(origin) is None:
            raise ConfigError(
                f"LITESTACK_CABLE_ORIGINS holds {origin!r}, which is no origin; write it like "
                '"https://www.example.org", or "*" for all.'
            )


def host_of(origin: str) -> str | None:
    """Return host and port of an origin in one spelling; None for something else ("null")."""
    match = _ORIGIN.fullmatch(origin)
    if match is None or origin == "null":
        return None
    host = match[1].lower()
    return re.sub(r"(?<!:):(?:80|443)$", "", host)


def keep(environ: Mapping[str, Any]) -> bytes:
    """Pack what the app may want to know of the request later.

    One bytes object costs a tenth of the memory of a dictionary, and the garbage collector
    nothing.

    :raises RequestHeaderFieldsTooLarge: if it is more than 16 KiB.
    """
    kept = {
        name: value
        for name, value in environ.items()
        if isinstance(value, str)
        and (name in _KEPT or (name.startswith("HTTP_") and name not in _TRANSPORT))
    }
    kept["wsgi.url_scheme"] = environ["wsgi.url_scheme"]
    packed = json.dumps(kept, separators=(",", ":")).encode()
    if len(packed) > MAX_ENVIRON:
        raise RequestHeaderFieldsTooLarge(f"more than {MAX_ENVIRON} bytes of headers")
    return packed


def restore(packed: bytes) -> dict[str, Any]:
    """Rebuild a WSGI environment: the same request, without its body."""
    environ: dict[str, Any] = json.loads(packed)
    environ.update(
        {
            "REQUEST_METHOD": "GET",
            "wsgi.version": (1, 0),
            "wsgi.input": io.BytesIO(),
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": True,
            "wsgi.multiprocess": True,
            "wsgi.run_once": False,
        }
    )
    return environ

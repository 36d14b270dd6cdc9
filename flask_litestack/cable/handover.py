"""Takes a connection out of the hands of the WSGI server, without its noticing.

The server's descriptor is duplicated for us, and one end of a socket pair is put in its place.
The server then answers into the pair, shuts that down and closes it, and counts one connection
less. (A plain duplicate would not do: gunicorn calls shutdown(), which ends the connection
itself.) This works wherever the environment has the socket of the client, unencrypted, and the
server keeps nothing but the descriptor: gunicorn's sync and gthread workers, Werkzeug's server.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Any

#: Where servers put the client's socket.
_KEYS = ("gunicorn.socket", "werkzeug.socket")

#: Seconds that the client may take to accept some hundred bytes of a fresh connection.
_TIMEOUT = 5.0

#: The kernel's buffer for what a client has not read; left alone it grows to 4 MiB for each.
_SEND_BUFFER = 64 * 1024


def client_socket(environ: Mapping[str, Any]) -> socket.socket | None:
    """Return the client's socket if the connection can be taken over, else None."""
    if not environ["SERVER_PROTOCOL"].startswith("HTTP/1."):
        return None  # other requests share the connection
    for key in _KEYS:
        found = environ.get(key)
        if type(found) is socket.socket:  # not an SSLSocket
            return found
    return None


class Handover:
    """One connection on its way to the hub.

    :raises OSError: if there are no descriptors left; nothing has happened then.
    """

    def __init__(self, environ: Mapping[str, Any], server_socket: socket.socket) -> None:
        self._environ = environ
        self._server = server_socket
        self.fd = os.dup(server_socket.fileno())
        try:
            self._decoy, self._other = socket.socketpair()
        except OSError:
            os.close(self.fd)
            raise

    def cancel(self) -> None:
        """Leave the connection with the server."""
        os.close(self.fd)
        self._decoy.close()
        self._other.close()

    def take(self, head: bytes, patience: float) -> bytes:
        """Send the head of the response and take the connection.

        :param patience: seconds after which the kernel gives up a client that takes nothing of
            what it is sent.
        :returns: what the client has sent already and the server has read.
        :raises OSError: if the client is gone; the connection is the server's then.
        """
        timeout = self._server.gettimeout()
        try:
            self._server.settimeout(_TIMEOUT)
            self._server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
            if self._server.family != socket.AF_UNIX:
                self._server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
                    milliseconds = int(patience * 1000)
                    self._server.setsockopt(
                        socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds
                    )
            self._server.sendall(head)
            os.set_blocking(self.fd, False)
            # The server reads the end of its input at once, and may write into the other end
            # until finish().
            self._other.shutdown(socket.SHUT_WR)
            os.dup2(self._decoy.fileno(), self._server.fileno(), inheritable=False)
            self._decoy.close()
        finally:
            self._server.settimeout(timeout)
        return _read_ahead(self._environ)

    def finish(self) -> None:
        """Close the pair, after the server has sent its answer into it."""
        self._other.close()


def _read_ahead(environ: Mapping[str, Any]) -> bytes:
    """Take the bytes that the server has read behind the request."""
    body = environ.get("wsgi.input")
    unreader = getattr(getattr(body, "reader", None), "unreader", None)
    if unreader is not None:  # gunicorn
        buffered: bytes = unreader.buf.getvalue()
        unreader.buf.seek(0)
        unreader.buf.truncate()
        return buffered
    peek = getattr(body, "peek", None)
    if peek is not None:  # Werkzeug: a BufferedReader, whose source is at its end now
        ahead: bytes = peek()
        return ahead
    return b""

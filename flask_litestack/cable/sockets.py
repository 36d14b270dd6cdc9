"""Socket calls that never wait and never give up the GIL.

Python's own ``socket.send`` releases the GIL around a call of some ten microseconds, and to get
it back beside one CPU-bound thread takes the switch interval, 5 ms: 1,000 sends took 5.2 s.
Called through ``ctypes.PyDLL`` the same 1,000 took 55 ms. The caller must give the other threads
their turn from time to time (the hub does, see hub.py).
"""

from __future__ import annotations

import ctypes
import errno
import socket

#: One buffer for all reads: they happen on one thread, and each is parsed before the next.
READ_SIZE = 16 * 1024

_AGAIN = {errno.EAGAIN, errno.EWOULDBLOCK, errno.EINTR, errno.ENOBUFS}

try:
    _libc = ctypes.PyDLL(None, use_errno=True)
    _send = _libc.send
    _recv = _libc.recv
    _shutdown = _libc.shutdown
    _FLAGS = socket.MSG_DONTWAIT | getattr(socket, "MSG_NOSIGNAL", 0)
except (AttributeError, OSError, TypeError):  # Windows
    AVAILABLE = False
else:
    AVAILABLE = True
    _send.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int)
    _send.restype = ctypes.c_ssize_t
    _recv.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    _recv.restype = ctypes.c_ssize_t
    _shutdown.argtypes = (ctypes.c_int, ctypes.c_int)


def send(fd: int, data: bytes) -> int:
    """Send what fits into the socket's buffer.

    :returns: the number of bytes sent, 0 if the buffer is full, -1 if the connection is broken.
    """
    sent: int = _send(fd, data, len(data), _FLAGS)
    if sent >= 0:
        return sent
    return 0 if ctypes.get_errno() in _AGAIN else -1


class Reader:
    """Reads from any number of sockets, on one thread."""

    def __init__(self) -> None:
        self._buffer = ctypes.create_string_buffer(READ_SIZE)
        self._address = ctypes.addressof(self._buffer)

    def read(self, fd: int) -> bytes | None:
        """Return what has arrived, None if nothing has, b"" at the end or after an error."""
        received: int = _recv(fd, self._address, READ_SIZE, _FLAGS)
        if received > 0:
            return ctypes.string_at(self._address, received)
        if received == 0 or ctypes.get_errno() not in _AGAIN:
            return b""
        return None


def half_close(fd: int) -> None:
    """Tell the other side that nothing more will come."""
    _shutdown(fd, socket.SHUT_WR)

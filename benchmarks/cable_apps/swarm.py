"""Many websocket clients in one process: connects, subscribes, and notes when messages arrive."""

from __future__ import annotations

import base64
import os
import re
import select
import socket
import time
import zlib
from typing import Any

#: What a browser sends along with a handshake.
BROWSER = (
    "Pragma: no-cache\r\n"
    "Cache-Control: no-cache\r\n"
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) "
    "Chrome/142.0.0.0 Safari/537.36\r\n"
    "Accept-Encoding: gzip, deflate, br, zstd\r\n"
    "Accept-Language: en-GB,en;q=0.9,de;q=0.8\r\n"
    "Cookie: session=eyJfdXNlcl9pZCI6IjEyMyIsImNzcmZfdG9rZW4iOiI4ZjE0ZTQ1ZiJ9.Zxyz12.abcdefghij"
    "klmnopqrstuvwxyz012; theme=dark\r\n"
    "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n"
)

#: When a message was published, in its JSON.
STAMP = re.compile(rb'"t": ?([\d.]+),')

#: An empty ping, which our server sends in front of a position, and its answer.
PING, PONG = b"\x89\x00", b"\x8a\x80mask"


class Swarm:
    """``count`` connected clients. ``first`` frames are sent by each once it is connected."""

    def __init__(
        self, port: int, count: int, *, path: str, first: list[bytes], at_once: int = 100
    ) -> None:
        self.epoll = select.epoll()
        self.sockets: dict[int, socket.socket] = {}
        self.rests: dict[int, bytes] = {}
        # The clients whose server compresses, as browsers ask it to: what is left of a frame.
        self._inflaters: dict[int, Any] = {}
        self._frames: dict[int, bytes] = {}
        self._connect(port, count, path, first, at_once)

    def _connect(self, port: int, count: int, path: str, first: list[bytes], at_once: int) -> None:
        """Connect with ``at_once`` handshakes under way at any time."""
        started = 0
        waiting: dict[int, tuple[socket.socket, bytes]] = {}
        while started < count or waiting:
            while started < count and len(waiting) < at_once:
                sock = socket.create_connection(("127.0.0.1", port), timeout=30)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                key = base64.b64encode(os.urandom(16)).decode()
                sock.sendall(
                    (
                        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\n"
                        f"Origin: http://127.0.0.1:{port}\r\nConnection: Upgrade\r\n"
                        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n{BROWSER}\r\n"
                    ).encode()
                )
                sock.setblocking(False)
                self.epoll.register(sock, select.EPOLLIN)
                waiting[sock.fileno()] = (sock, b"")
                started += 1
            for fd, _ in self.epoll.poll(30):
                if fd not in waiting:
                    continue  # an early message; read later
                sock, head = waiting[fd]
                head += sock.recv(65536)
                if b"\r\n\r\n" not in head:
                    if not head:
                        raise ConnectionError("closed during the handshake")
                    waiting[fd] = (sock, head)
                    continue
                head, _, rest = head.partition(b"\r\n\r\n")
                if b" 101 " not in head.split(b"\r\n")[0]:
                    raise ConnectionError(head.decode())
                del waiting[fd]
                self.sockets[fd] = sock
                if b"permessage-deflate" in head:
                    self._inflaters[fd] = zlib.decompressobj(-15)
                    self._frames[fd] = b""
                self.rests[fd] = self._readable(fd, rest)
                for frame in first:
                    sock.sendall(frame)

    def wait_for_each(self, text: bytes, *, timeout: float = 60.0) -> float:
        """Read until every client has got ``text``; return when the last had, monotonic."""
        missing = set(self.sockets)
        deadline = time.monotonic() + timeout
        for fd in list(missing):
            self._take(fd, b"", text, missing)
        while missing:
            events = self.epoll.poll(max(0.0, deadline - time.monotonic()), 4096)
            if not events and time.monotonic() > deadline:
                raise TimeoutError(f"{len(missing)} clients did not get {text!r}")
            for fd, _ in events:
                data = self.sockets[fd].recv(65536)
                if not data:
                    raise ConnectionError("a client was dropped")
                self._take(fd, self._readable(fd, data), text, missing)
        return time.monotonic()

    def pump(self, seconds: float) -> None:
        """Wait, and answer pings meanwhile; what else arrives is thrown away."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            for fd, _ in self.epoll.poll(left, 4096):
                data = self.sockets[fd].recv(65536)
                if not data:
                    raise ConnectionError("a client was dropped")
                self._readable(fd, data)

    def _readable(self, fd: int, data: bytes) -> bytes:
        """Inflate what is compressed; else the frames as they are will do."""
        inflater = self._inflaters.get(fd)
        if inflater is None:
            if PING in data:
                self.sockets[fd].send(PONG)
            return data
        data = self._frames[fd] + data
        texts = []
        while len(data) >= 2:
            size, start = data[1], 2
            if size == 126:
                size, start = int.from_bytes(data[2:4], "big"), 4
            if len(data) < start + size:
                break
            payload = data[start : start + size]
            compressed = data[0] & 0x40
            texts.append(inflater.decompress(payload + b"\0\0\xff\xff") if compressed else payload)
            data = data[start + size :]
        self._frames[fd] = data
        return b" ".join(texts)

    def _take(self, fd: int, data: bytes, text: bytes, missing: set[int]) -> None:
        rest = self.rests[fd] + data
        if text in rest:
            missing.discard(fd)
            rest = rest[rest.rindex(text) + len(text) :]
        self.rests[fd] = rest[-2000:]

    def latencies(self, seconds: float, count: int) -> list[list[float]]:
        """Read for ``seconds``, or until each client has ``count`` messages with a time in them.

        Return for each client how long each message took, in seconds.
        """
        took: dict[int, list[float]] = {fd: [] for fd in self.sockets}
        open_ends = dict.fromkeys(self.sockets, b"")
        deadline = time.monotonic() + seconds
        complete = 0
        while complete < len(took) and (left := deadline - time.monotonic()) > 0:
            for fd, _ in self.epoll.poll(left, 4096):
                data = self.sockets[fd].recv(65536)
                now = time.monotonic()
                if not data:
                    raise ConnectionError("a client was dropped")
                data = open_ends[fd] + self._readable(fd, data)
                end = 0
                for match in STAMP.finditer(data):
                    took[fd].append(now - float(match[1]))
                    end = match.end()
                    complete += len(took[fd]) == count
                open_ends[fd] = data[end:][-300:]
        return list(took.values())

    def close(self) -> None:
        for sock in self.sockets.values():
            sock.close()
        self.epoll.close()


def masked(payload: bytes, first: int = 0x81) -> bytes:
    """Frame a short text as a client does."""
    key = os.urandom(4)
    size = len(payload)
    head = bytes([first, 0x80 | size]) if size < 126 else b""
    if not head:
        head = bytes([first, 0x80 | 126]) + size.to_bytes(2, "big")
    return head + key + bytes(byte ^ key[i % 4] for i, byte in enumerate(payload))

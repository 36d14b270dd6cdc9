"""A websocket client for tests: plain sockets, so that it can also misbehave."""

from __future__ import annotations

import base64
import json
import os
import socket
import struct
import time
from typing import Any


class Refused(Exception):
    """The handshake was not answered with 101."""

    def __init__(self, status: int, response: str) -> None:
        super().__init__(response)
        self.status = status
        self.response = response


class Client:
    """One connection. Reads wait up to ``timeout`` seconds."""

    def __init__(
        self,
        port: int,
        path: str = "/cable",
        *,
        headers: dict[str, str] | None = None,
        early: bytes = b"",
        timeout: float = 10.0,
        host: str = "127.0.0.1",
        receive_buffer: int | None = None,
    ) -> None:
        self.socket = socket.socket()
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(timeout)
        self.socket.connect((host, port))
        self._rest = b""
        self.close_code: int | None = None
        self.pings = 0
        lines = {
            "Host": f"{host}:{port}",
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
            **(headers or {}),
        }
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        self.socket.sendall(f"GET {path} HTTP/1.1\r\n{head}\r\n".encode() + early)
        self.head = self._read_head()
        status = int(self.head.split()[1])
        if status != 101:
            self.socket.close()
            raise Refused(status, self.head)

    def _read_head(self) -> str:
        while b"\r\n\r\n" not in self._rest:
            data = self.socket.recv(65536)
            if not data:
                raise ConnectionError(f"closed during the handshake: {self._rest!r}")
            self._rest += data
        head, _, self._rest = self._rest.partition(b"\r\n\r\n")
        return head.decode()

    def send(self, **request: Any) -> None:
        self.send_frame(0x81, json.dumps(request).encode())

    def send_frame(self, first: int, payload: bytes = b"", *, mask: bool = True) -> None:
        self.socket.sendall(make_frame(first, payload, mask=mask))

    def read_frame(self) -> tuple[int, bytes]:
        """Return the opcode and payload of the next frame.

        :raises ConnectionError: at the end of the stream, :raises TimeoutError: after a while.
        """
        while True:
            found = self._take_frame()
            if found is not None:
                return found
            data = self.socket.recv(65536)
            if not data:
                raise ConnectionError("closed")
            self._rest += data

    def _take_frame(self) -> tuple[int, bytes] | None:
        rest = self._rest
        if len(rest) < 2:
            return None
        size, start = rest[1] & 0x7F, 2
        assert not rest[1] & 0x80, "a server must not mask"
        if size == 126:
            if len(rest) < 4:
                return None
            size, start = struct.unpack("!H", rest[2:4])[0], 4
        elif size == 127:
            if len(rest) < 10:
                return None
            size, start = struct.unpack("!Q", rest[2:10])[0], 10
        if len(rest) < start + size:
            return None
        self._rest = rest[start + size :]
        assert rest[0] & 0x80, "the server never fragments"
        return rest[0] & 0x0F, rest[start : start + size]

    def read(self) -> dict[str, Any]:
        """Return the next JSON message; pings are answered, positions skipped."""
        while True:
            opcode, payload = self.read_frame()
            if opcode == 1:
                message: dict[str, Any] = json.loads(payload)
                if message["type"] != "position":
                    return message
            elif opcode == 9:
                self.pings += 1
                self.send_frame(0x8A, payload)
            elif opcode == 8:
                self.close_code = struct.unpack("!H", payload[:2])[0] if payload else 1005
                raise ConnectionError(f"closed with {self.close_code}")

    def subscribe(self, channel: str, since: int | None = None) -> dict[str, Any]:
        """Subscribe and return the confirmation."""
        request: dict[str, Any] = {"type": "subscribe", "channel": channel}
        if since is not None:
            request["since"] = since
        self.send(**request)
        answer = self.read()
        assert answer["type"] == "subscribed", answer
        return answer

    def read_until_close(self) -> int | None:
        """Read to the end and return the close code, None where there was none."""
        try:
            while True:
                self.read()
        except (ConnectionError, TimeoutError):
            return self.close_code

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def make_frame(first: int, payload: bytes = b"", *, mask: bool = True) -> bytes:
    """Build a client's frame; ``first`` is the first byte, 0x81 for a whole text."""
    size = len(payload)
    bit = 0x80 if mask else 0
    if size < 126:
        head = struct.pack("!BB", first, bit | size)
    elif size < 65536:
        head = struct.pack("!BBH", first, bit | 126, size)
    else:
        head = struct.pack("!BBQ", first, bit | 127, size)
    if not mask:
        return head + payload
    key = os.urandom(4)
    repeated = key * (size // 4 + 1)
    masked = bytes(a ^ b for a, b in zip(payload, repeated, strict=False))
    return head + key + masked


def wait_until(condition: Any, timeout: float = 10.0) -> None:
    """Wait until ``condition()`` is true.

    :raises AssertionError: if it does not become so.
    """
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)

"""Many websockets that subscribe to one channel and count its messages."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import struct
import threading

#: Sockets whose handshakes are under way at the same time.
AT_ONCE = 50


class Sockets:
    """Open websockets on a thread of their own, until the block ends."""

    def __init__(self, port: int, channel: str, count: int) -> None:
        self._port = port
        self._channel = channel
        self.received = [0] * count
        self.failures: list[str] = []
        self._loop = asyncio.new_event_loop()
        self._opened = threading.Event()
        self._closing = asyncio.Event()
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._run()))

    def __enter__(self) -> Sockets:
        self._thread.start()
        self._opened.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join()
        self._loop.close()

    async def _run(self) -> None:
        gate = asyncio.Semaphore(AT_ONCE)
        ready = [self._loop.create_future() for _ in self.received]
        tasks = [
            self._loop.create_task(self._one(number, gate, future))
            for number, future in enumerate(ready)
        ]
        await asyncio.wait(ready)
        self._opened.set()
        await self._closing.wait()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _one(self, number: int, gate: asyncio.Semaphore, ready: asyncio.Future[None]) -> None:
        writer = None
        try:
            async with gate:
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                await self._subscribe(reader, writer)
            ready.set_result(None)
            while True:
                message = await _read(reader, writer)
                self.received[number] += message.get("type") in ("message", "render")
        except (OSError, ValueError, AssertionError, asyncio.IncompleteReadError) as error:
            self.failures.append(f"{type(error).__name__}: {error}")
        finally:
            if not ready.done():
                ready.set_result(None)
            if writer is not None:
                writer.close()

    async def _subscribe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        key = base64.b64encode(os.urandom(16)).decode()
        host = f"127.0.0.1:{self._port}"
        writer.write(
            f"GET /cable HTTP/1.1\r\nHost: {host}\r\nOrigin: http://{host}\r\n"
            "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Key: {key}\r\n\r\n".encode()
        )
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 "), head.decode()
        writer.write(_frame(0x1, json.dumps({"type": "subscribe", "channel": self._channel})))
        while (await _read(reader, writer)).get("type") != "subscribed":
            pass


async def _read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> dict[str, object]:
    """Return the next message, and answer pings on the way (RFC 6455, section 5)."""
    while True:
        first, length = await reader.readexactly(2)
        if length == 126:
            [length] = struct.unpack("!H", await reader.readexactly(2))
        elif length == 127:
            [length] = struct.unpack("!Q", await reader.readexactly(8))
        payload = await reader.readexactly(length)
        if first == 0x89:
            writer.write(_frame(0xA, payload.decode()))
        elif first == 0x88:
            raise ConnectionError(f"closed by the server with {payload[:2].hex()}")
        elif first == 0x81:
            message: dict[str, object] = json.loads(payload)
            return message


def _frame(opcode: int, text: str) -> bytes:
    payload = text.encode()
    assert len(payload) < 126
    mask = os.urandom(4)
    masked = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
    return bytes([0x80 | opcode, 0x80 | len(payload)]) + mask + masked

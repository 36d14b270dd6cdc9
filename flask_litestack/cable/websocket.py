"""What comes in over a websocket: frames are read by wsproto."""

from __future__ import annotations

from collections.abc import Iterator

from wsproto.frame_protocol import CloseReason, FrameProtocol, Opcode, ParseFailed

from .frames import BadFrame, Close, Closed, Ping


class WebSocketParser:
    """The incoming half of one websocket: frames in, whole text messages out.

    :param limit: the size of a message in bytes beyond which the connection is closed.
    """

    __slots__ = ("_limit", "_parts", "_protocol", "_size")

    def __init__(self, limit: int) -> None:
        self._protocol = FrameProtocol(client=False, extensions=[])
        self._limit = limit
        self._parts: list[str] | None = None
        self._size = 0

    def feed(self, data: bytes) -> Iterator[str | Ping | Closed]:
        """Yield the messages, pings and the close in ``data``; pongs are swallowed.

        :raises BadFrame: where the client must be sent away.
        """
        try:
            self._protocol.receive_bytes(data)
            for received in self._protocol.received_frames():
                opcode, payload = received.opcode, received.payload
                if opcode is Opcode.TEXT:
                    assert isinstance(payload, str)
                    text = self._collect(payload, received.message_finished)
                    if text is not None:
                        yield text
                elif opcode is Opcode.BINARY:
                    raise BadFrame(Close.UNSUPPORTED, "text frames only")
                elif opcode is Opcode.PING:
                    assert isinstance(payload, (bytes, bytearray))
                    yield Ping(bytes(payload))
                elif opcode is Opcode.CLOSE:
                    assert isinstance(payload, tuple)
                    yield Closed(int(payload[0]))
                    return
        except ParseFailed as error:
            code = error.code or CloseReason.PROTOCOL_ERROR
            raise BadFrame(int(code), str(error)) from error

    def _collect(self, part: str, finished: bool) -> str | None:
        self._size += len(part) if part.isascii() else len(part.encode())
        if self._size > self._limit:
            raise BadFrame(Close.TOO_BIG, f"more than {self._limit} bytes")
        if finished and self._parts is None:
            self._size = 0
            return part
        if self._parts is None:
            self._parts = []
        if part:
            self._parts.append(part)
        if not finished:
            return None
        text = "".join(self._parts)
        self._parts = None
        self._size = 0
        return text

from __future__ import annotations

import json
import os

import pytest

from flask_litestack.cable.frames import (
    BadFrame,
    Kind,
    LineParser,
    closing,
    encode,
    keep_alive,
)


@pytest.mark.parametrize("size", [0, 125, 126, 65535, 65536])
def test_frames_have_the_right_length_field(size: int) -> None:
    framed = encode(Kind.WEBSOCKET, b"x" * size)
    head = {0: 2, 125: 2, 126: 4, 65535: 4, 65536: 10}[size]
    assert len(framed) == head + size
    assert framed[0] == 0x81


def test_an_event_has_its_id_and_no_bare_line_break() -> None:
    assert encode(Kind.EVENTS, b'{"a":1}', 7) == b'id: 7\ndata: {"a":1}\n\n'
    assert encode(Kind.EVENTS, b"{\n}") == b"data: {\ndata: }\n\n"
    assert keep_alive(Kind.EVENTS, b"{}", 9) == b"id: 9\ndata: {}\n\n"


def test_a_reason_is_cut_to_what_a_close_frame_holds() -> None:
    assert len(closing(Kind.WEBSOCKET, 1002, "x" * 500)) == 2 + 125


def test_a_line_without_end_is_refused() -> None:
    parser = LineParser(limit=100)
    assert list(parser.feed(b'{"a":1}\n{"b"')) == [json.dumps({"a": 1}, separators=(",", ":"))]
    with pytest.raises(BadFrame):
        list(parser.feed(os.urandom(101).replace(b"\n", b"x")))

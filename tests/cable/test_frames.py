from __future__ import annotations

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_litestack.cable.frames import (
    BadFrame,
    Kind,
    LineParser,
    Ping,
    WebSocketParser,
    closing,
    encode,
    keep_alive,
)

from .client import make_frame


@given(
    texts=st.lists(st.text(max_size=200), max_size=5),
    cuts=st.lists(st.integers(1, 50), min_size=1, max_size=5),
)
def test_messages_come_out_as_they_went_in_however_they_are_cut(
    texts: list[str], cuts: list[int]
) -> None:
    stream = b"".join(make_frame(0x81, text.encode()) for text in texts)
    parser = WebSocketParser(limit=10_000)
    got = []
    while stream:
        size = cuts[len(got) % len(cuts)]
        got += list(parser.feed(stream[:size]))
        stream = stream[size:]
    assert got == texts


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


def test_empty_fragments_take_no_memory() -> None:
    parser = WebSocketParser(limit=100)
    list(parser.feed(make_frame(0x01)))
    for _ in range(1000):
        assert list(parser.feed(make_frame(0x00))) == []
    assert parser._parts == []


def test_a_ping_carries_its_payload() -> None:
    assert list(WebSocketParser(100).feed(make_frame(0x89, b"abc"))) == [Ping(b"abc")]


def test_a_line_without_end_is_refused() -> None:
    parser = LineParser(limit=100)
    assert list(parser.feed(b'{"a":1}\n{"b"')) == [json.dumps({"a": 1}, separators=(",", ":"))]
    with pytest.raises(BadFrame):
        list(parser.feed(os.urandom(101).replace(b"\n", b"x")))

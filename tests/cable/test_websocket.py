from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from flask_litestack.cable.frames import Ping
from flask_litestack.cable.websocket import WebSocketParser

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


def test_empty_fragments_take_no_memory() -> None:
    parser = WebSocketParser(limit=100)
    list(parser.feed(make_frame(0x01)))
    for _ in range(1000):
        assert list(parser.feed(make_frame(0x00))) == []
    assert parser._parts == []


def test_a_ping_carries_its_payload() -> None:
    assert list(WebSocketParser(100).feed(make_frame(0x89, b"abc"))) == [Ping(b"abc")]

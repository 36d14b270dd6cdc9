"""What one connection can do to the others: RFC 6455, floods, slowness, rubbish."""

from __future__ import annotations

import random
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .client import Client, make_frame, wait_until
from .conftest import Site, served, works

SUBSCRIBE = b'{"type":"subscribe","channel":"posts/7"}'


def test_a_fragmented_message_with_a_ping_in_its_middle_is_read(port: int) -> None:
    with Client(port) as client:
        client.send_frame(0x01, SUBSCRIBE[:5])
        client.send_frame(0x89, b"are you there")
        assert client.read_frame() == (10, b"are you there")
        client.send_frame(0x00, SUBSCRIBE[5:20])
        client.send_frame(0x00, b"")
        client.send_frame(0x80, SUBSCRIBE[20:])
        assert client.read()["type"] == "subscribed"


def test_a_character_may_be_split_between_fragments(site: Site, port: int) -> None:
    text = '{"type":"send","channel":"posts/7","data":"é😀"}'.encode()
    with Client(port) as client:
        client.subscribe("posts/7")
        client.send_frame(0x01, text[:-6])
        client.send_frame(0x80, text[-6:])
        wait_until(lambda: site.seen)
        assert site.seen == [(None, 7, "é😀")]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_bytes_may_come_one_by_one(port: int, size: int) -> None:
    frame = make_frame(0x81, SUBSCRIBE)
    with Client(port) as client:
        for start in range(0, len(frame), size):
            client.socket.sendall(frame[start : start + size])
        assert client.read()["type"] == "subscribed"


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (make_frame(0x81, b"\xff\xfe"), 1007),
        (make_frame(0x82, b"binary"), 1003),
        (make_frame(0x81, SUBSCRIBE, mask=False), 1002),
        (make_frame(0xC1, SUBSCRIBE), 1002),  # a reserved bit
        (make_frame(0x83, b""), 1002),  # a reserved opcode
        (make_frame(0x80, b"continues nothing"), 1002),
        (make_frame(0x01, b"x") + make_frame(0x81, b"x"), 1002),
        (make_frame(0x09, b""), 1002),  # a fragmented ping
        (make_frame(0x89, b"x" * 126), 1002),
        (make_frame(0x88, b"x"), 1002),  # a close of one byte
        (make_frame(0x88, struct.pack("!H", 1005)), 1002),
        (make_frame(0x88, struct.pack("!H", 999)), 1002),
        (make_frame(0x88, struct.pack("!H", 1000) + b"\xff"), 1007),
        (make_frame(0x88, struct.pack("!H", 1000)), 1000),
        (make_frame(0x88, struct.pack("!H", 4321) + b"bye"), 4321),
        (make_frame(0x88), 1000),
        (b"\x81\xff" + struct.pack("!Q", 2**63), 1002),
        (b"\x81\xff" + struct.pack("!Q", 5) + b"mask12345", 1002),  # not the shortest form
    ],
)
def test_the_close_code_says_what_was_wrong(
    fuzzed: tuple[Site, int], sent: bytes, code: int
) -> None:
    with Client(fuzzed[1]) as client:
        client.socket.sendall(sent)
        assert client.read_until_close() == code
        assert client.socket.recv(100) == b""
    works(*fuzzed)


def test_nothing_is_answered_after_a_close(port: int) -> None:
    with Client(port) as client:
        client.socket.sendall(make_frame(0x88, b"\x03\xe8") + make_frame(0x81, SUBSCRIBE))
        assert client.read_until_close() == 1000
        assert client.socket.recv(100) == b""


@pytest.mark.parametrize(
    "frames",
    [
        [make_frame(0x81, b"x" * 2001)],
        [make_frame(0x01, b"x" * 1500), make_frame(0x80, b"x" * 1500)],
        [b"\x81\xff" + struct.pack("!Q", 2**62) + b"mask" + b"x" * 3000],
    ],
)
def test_a_message_that_is_too_big_ends_the_connection(
    fuzzed: tuple[Site, int], frames: list[bytes]
) -> None:
    with Client(fuzzed[1]) as client:
        client.socket.sendall(b"".join(frames))
        assert client.read_until_close() == 1009


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    rubbish=st.lists(
        st.one_of(
            st.binary(max_size=300),
            st.builds(
                make_frame,
                st.integers(0, 255),
                st.one_of(st.binary(max_size=200), st.text(max_size=80).map(str.encode)),
                mask=st.booleans(),
            ),
            st.sampled_from([make_frame(0x81, SUBSCRIBE), make_frame(0x88, b"\x03\xe8")]),
        ),
        max_size=8,
    )
)
def test_rubbish_harms_nobody_else(fuzzed: tuple[Site, int], rubbish: list[bytes]) -> None:
    site, port = fuzzed
    client = Client(port, timeout=2)
    try:
        for data in rubbish:
            client.socket.sendall(data)
    except OSError:
        pass  # it has been sent away already
    client.close()
    if random.random() < 0.1:
        works(site, port)


def test_the_hub_survived_all_that(fuzzed: tuple[Site, int]) -> None:
    site, port = fuzzed
    works(site, port)
    wait_until(lambda: site.clients == 0, timeout=20)
    with site.app.app_context():
        state = site.litestack.cable._states.current()
    assert state.hub._topics == {}  # type: ignore[union-attr]


def test_a_flood_of_pings_and_of_subscribes_stalls_nobody_else(
    fuzzed: tuple[Site, int],
) -> None:
    site, port = fuzzed
    flood = make_frame(0x89, b"ping") * 20_000 + b"".join(
        make_frame(0x81, b'{"type":"subscribe","channel":"posts/%d"}' % number)
        for number in range(1000, 4000)
    )
    with Client(port) as flooding, Client(port) as other:
        other.subscribe("posts/7")
        flooding.socket.setblocking(False)
        rest = memoryview(flood)
        slowest = 0.0
        for number in range(50):
            with suppress(BlockingIOError):
                rest = rest[flooding.socket.send(rest) :]
            before = time.monotonic()
            site.broadcast("posts/7", number)
            assert other.read()["data"] == number
            slowest = max(slowest, time.monotonic() - before)
        assert slowest < 2.0


def test_half_open_connections_harm_nobody_else(fuzzed: tuple[Site, int]) -> None:
    site, port = fuzzed
    halves = [socket.create_connection(("127.0.0.1", port)) for _ in range(20)]
    for index, half in enumerate(halves):
        half.sendall(b"GET /cable HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n"[: 5 + 2 * index])
    works(site, port)
    for half in halves:
        half.close()


def test_a_slow_reader_is_sent_away_and_resumes_without_loss(
    make_site: Callable[..., Site],
) -> None:
    site = make_site(cable_buffer=150_000)
    with (
        served(site.app) as port,
        Client(port, receive_buffer=4096) as slow,
        Client(port) as fast,
    ):
        start = slow.subscribe("posts/7")["id"]
        fast.subscribe("posts/7")
        total = 400
        for number in range(total):
            site.broadcast("posts/7", [number, "x" * 2000])
            assert fast.read()["data"][0] == number
        wait_until(lambda: site.clients == 1, timeout=20)
        got = []
        try:
            while True:
                message = slow.read()
                got.append(message["data"][0])
                start = message["id"]
        except ConnectionError:
            pass
        assert got == list(range(len(got)))
        assert 0 < len(got) < total
        while len(got) < total:
            with Client(port) as again:
                again.send(type="subscribe", channel="posts/7", since=start)
                answer = again.read()
                assert answer["type"] == "subscribed"
                try:
                    again.socket.settimeout(0.5)
                    while len(got) < total:
                        message = again.read()
                        if message["type"] == "missed":
                            # More than fits into the buffer: said plainly, and a subscription
                            # from here on.
                            return
                        got.append(message["data"][0])
                        start = message["id"]
                except TimeoutError:
                    continue
        assert got == list(range(total))


def test_a_slow_reader_learns_why_it_is_sent_away(make_site: Callable[..., Site]) -> None:
    site = make_site(cable_buffer=100_000)
    with served(site.app) as port, Client(port, receive_buffer=4096) as slow:
        slow.subscribe("posts/7")
        with site.app.app_context():
            hub = site.litestack.cable.hub()
        while hub.channels:
            site.broadcast("posts/7", "x" * 10_000)
        assert slow.read_until_close() == 1013

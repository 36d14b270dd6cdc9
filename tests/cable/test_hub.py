"""What one connection can do to the hub, and to the others: RFC 6455, floods, silence, rubbish."""

from __future__ import annotations

import os
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flask_litestack.cable import deliveries
from flask_litestack.cable.hub import Hub
from flask_litestack.cable.store import RowKind, Store

from .client import Client, Refused, make_frame, wait_until
from .conftest import Site, served
from .stepped import reset, stepped
from .test_store import damage

SUBSCRIBE = b'{"type":"subscribe","channel":"posts/7"}'


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, int]]:
    """One site for all rubbish."""
    site = Site(tmp_path_factory.mktemp("fuzz"), cable_max_message=2000, cable_ping_interval=60)
    with served(site.app) as port:
        yield site, port
    site.litestack.cable.stop()
    with site.app.app_context():
        site.litestack.db.engine.dispose()


def works(site: Site, port: int) -> None:
    """Assert that the hub serves somebody else."""
    with Client(port) as client:
        client.subscribe("posts/7")
        site.broadcast("posts/7", "still here")
        assert client.read()["data"] == "still here"


# -- RFC 6455 -------------------------------------------------------------------------------------


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


# -- requests that are wrong ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "[]",
        "1",
        "NaN",
        '{"type":"subscribe"}',
        '{"type":"subscribe","channel":7}',
        '{"type":"subscribe","channel":"posts/7","since":"1"}',
        '{"type":"subscribe","channel":"posts/7","since":true}',
        '{"type":"subscribe","channel":"posts/7","since":-1}',
        '{"type":"subscribe","channel":"posts/7","since":9007199254740993}',
        '{"type":"send","channel":"posts/7"}',
        '{"type":"obey","channel":"posts/7"}',
        '{"type":["send"],"channel":"posts/7"}',
        "[" * 1900,
        '{"type":"subscribe","channel":"posts/7","since":' + "9" * 1800 + "}",
    ],
)
def test_a_wrong_request_is_answered_with_an_error(fuzzed: tuple[Site, int], text: str) -> None:
    with Client(fuzzed[1]) as client:
        client.send_frame(0x81, text.encode())
        assert client.read()["type"] == "error"
        client.subscribe("posts/7")


def test_a_name_with_half_a_surrogate_pair_is_rejected(fuzzed: tuple[Site, int]) -> None:
    with Client(fuzzed[1]) as client:
        client.send(type="subscribe", channel="rooms/\ud800")
        assert client.read()["reason"] == "unknown channel"


def test_subscribing_twice_and_leaving_twice_are_errors(port: int) -> None:
    with Client(port) as client:
        client.subscribe("posts/7")
        client.send(type="subscribe", channel="posts/7")
        assert client.read()["reason"] == "already subscribed"
        client.send(type="unsubscribe", channel="posts/7")
        client.send(type="unsubscribe", channel="posts/7")
        assert client.read()["reason"] == "not subscribed"
        client.subscribe("posts/7")


def test_a_client_can_have_only_so_many_channels(port: int) -> None:
    with Client(port) as client:
        for number in range(1000, 1200):
            client.subscribe(f"posts/{number}")
        client.send(type="subscribe", channel="posts/7")
        assert client.read()["reason"] == "too many channels"


# -- floods, silence and rubbish ------------------------------------------------------------------


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


def test_what_waits_for_a_handler_is_limited_in_bytes_and_kept_as_text(
    site: Site, port: int
) -> None:
    request = {"type": "send", "channel": "posts/7", "data": "block"}
    nested = b'{"type":"send","channel":"posts/7","data":[' + b"[]," * 10_000 + b"[]]}"
    with Client(port) as client:
        client.subscribe("posts/7")
        client.send(**request)
        sender = threading.Thread(
            target=client.socket.sendall, args=(make_frame(0x81, nested) * 20,), daemon=True
        )
        sender.start()
        with site.app.app_context():
            hub = site.litestack.cable.hub()
        [served_client] = hub._connections._clients
        wait_until(lambda: not served_client.watched)
        assert served_client.inbox is not None
        assert all(isinstance(item, str) for item in served_client.inbox)
        assert served_client.inbox_size < 65_536 + 2 * len(nested)
        site.gate.set()
        wait_until(lambda: len(site.seen) == 21)
        sender.join()


def test_a_client_that_is_gone_takes_no_room_until_its_next_ping(site: Site, port: int) -> None:
    with Client(port, headers={"X-Long": "x" * 5000}) as client:
        client.subscribe("posts/7")
    wait_until(lambda: site.seen == [("left", None, 7)])
    with site.app.app_context():
        hub = site.litestack.cable.hub()
    [gone] = [client for waiting in hub._pings._due.values() for client in waiting]
    wait_until(lambda: gone.environ == b"")


def test_the_messages_that_wait_to_be_sent_are_limited_in_bytes(
    site: Site, port: int, elsewhere: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliveries, "CHUNK", 1)
    monkeypatch.setattr(deliveries, "MAX_DELIVERY_BYTES", 1_000_000)
    text = '"' + "x" * 99_000 + '"'
    with stepped(site) as hub, Client(port) as client:
        hub.subscribe(client, "posts/7")
        for _ in range(50):
            site.broadcast("posts/7", "x" * 99_000)
            elsewhere.append(RowKind.MESSAGE, "posts/7", text)
        most = 0
        while hub.hub.position < site.last_id() or hub.hub._deliveries:
            hub.hub._turn()
            most = max(most, hub.hub._deliveries._bytes)
            assert len(client.read()["data"]) == 99_000
        assert most < 1_000_000 + 4_500_000
        assert hub.hub._deliveries._bytes == 0


def test_a_large_message_reaches_a_slow_reader_whole(site: Site, port: int) -> None:
    with Client(port, receive_buffer=4096) as client:
        client.subscribe("posts/7")
        for number in range(2):
            site.broadcast("posts/7", [number] + ["é" * 10_000] * 5)
        time.sleep(0.3)
        for number in range(2):
            data = client.read()["data"]
            assert data == [number] + ["é" * 10_000] * 5


def test_a_silent_client_is_dropped_and_one_that_answers_pings_is_kept(
    make_site: Callable[..., Site],
) -> None:
    site = make_site(cable_ping_interval=1)
    with served(site.app) as port, Client(port) as silent, Client(port) as alive:
        silent.subscribe("posts/7")
        alive.subscribe("posts/7")
        alive.socket.settimeout(0.2)
        deadline = time.monotonic() + 15
        while site.clients == 2:
            assert time.monotonic() < deadline
            with pytest.raises(TimeoutError):
                alive.read()
        assert alive.pings >= 2
        site.broadcast("posts/7", "hello")
        alive.socket.settimeout(10)
        assert alive.read()["data"] == "hello"


def test_a_client_without_subscription_is_closed(make_site: Callable[..., Site]) -> None:
    site = make_site(cable_ping_interval=1)
    with served(site.app) as port, Client(port) as idle:
        assert idle.read_until_close() == 1000


def test_a_quiet_client_is_told_the_position_so_that_it_can_resume_much_later(
    make_site: Callable[..., Site],
) -> None:
    site = make_site(cable_ping_interval=1)
    with served(site.app) as port, Client(port) as client:
        client.subscribe("posts/7")
        site.broadcast("posts/8", "for others")
        wanted = site.last_id()
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            opcode, payload = client.read_frame()
            if opcode == 1 and payload == b'{"type":"position","id":%d}' % wanted:
                return
            if opcode == 9:
                client.send_frame(0x8A)
        pytest.fail("no position came")


def test_clients_beyond_the_limit_get_503_and_places_become_free(
    make_site: Callable[..., Site],
) -> None:
    site = make_site(cable_max_clients=2)
    with served(site.app) as port:
        with Client(port) as first, Client(port) as second:
            with pytest.raises(Refused) as refused:
                Client(port)
            assert refused.value.status == 503
            assert "retry-after: 5" in refused.value.response.lower()
            first.subscribe("posts/7")
            second.subscribe("posts/7")
        wait_until(lambda: site.clients == 0)
        with Client(port) as third:
            third.subscribe("posts/7")


def test_stopping_sends_every_client_away_with_1001(site: Site, port: int) -> None:
    with Client(port) as first, Client(port) as second:
        first.subscribe("posts/7")
        second.subscribe("posts/8")
        codes: list[int | None] = []

        def read(client: Client) -> None:
            codes.append(client.read_until_close())
            client.close()

        readers = [threading.Thread(target=read, args=(client,)) for client in (first, second)]
        for reader in readers:
            reader.start()
        site.litestack.cable.stop()
        for reader in readers:
            reader.join()
        assert codes == [1001, 1001]


def test_a_hub_that_cannot_start_leaves_nothing_open(site: Site) -> None:
    run = site.app.config["LITESTACK_DATA_PATH"] / "run"
    run.rename(run.with_name("away"))
    run.touch()
    before = len(os.listdir("/proc/self/fd"))
    with site.app.app_context():
        with pytest.raises(OSError, match="run"):
            site.litestack.cable.hub()
        assert len(os.listdir("/proc/self/fd")) == before
        run.unlink()
        assert site.litestack.cable.hub().admit()


def test_the_loop_goes_on_after_an_error(site: Site, port: int) -> None:
    with Client(port) as client:
        client.subscribe("posts/7")
        with site.app.app_context():
            hub = site.litestack.cable.hub()
        hub._loop.call(lambda: 1 / 0)
        site.broadcast("posts/7", "hello")
        assert client.read()["data"] == "hello"


def test_the_loop_goes_on_after_an_error_of_its_own(
    site: Site, port: int, caplog: pytest.LogCaptureFixture
) -> None:
    with Client(port) as client:
        client.subscribe("posts/7")
        with site.app.app_context():
            hub = site.litestack.cable.hub()
        hub._loop.call(lambda: hub._loop.later(0.0, lambda: 1 / 0))
        site.broadcast("posts/7", "hello")
        assert client.read()["data"] == "hello"
        wait_until(lambda: "the cable's hub failed; it goes on" in caplog.text)
        site.broadcast("posts/7", "again")
        assert client.read()["data"] == "again"


def test_clients_are_served_while_the_log_cannot_be_read_and_get_all_of_it_later(
    site: Site, port: int, elsewhere: Store, caplog: pytest.LogCaptureFixture
) -> None:
    with site.app.app_context():
        store = site.litestack.cable._states.current().store
    with Client(port) as client:
        client.subscribe("posts/7")
        with store._follower.mutex:
            store._follower.connection = store._open()
            store._follower.connection.close()
            store._follower.inode = os.stat(store._path).st_ino
        elsewhere.append(RowKind.MESSAGE, "posts/7", '"' + "x" * 10_000 + '"')
        site.broadcast("posts/7", "behind it")
        wait_until(lambda: "cannot read its log" in caplog.text)
        client.subscribe("posts/8")
        with store._follower.mutex:
            store._follower.connection = None
        assert [len(client.read()["data"]) for _ in range(2)] == [10_000, 9]


def test_a_running_hub_goes_on_with_the_file_that_takes_a_damaged_ones_place(
    site: Site, port: int, elsewhere: Store
) -> None:
    folder = site.app.config["LITESTACK_DATA_PATH"]
    with Client(port, "/cable?user=ann") as ann:
        ann.subscribe("rooms/lobby")
        assert ann.read()["data"] == {"count": 1, "users": ["ann"]}
        damage(folder)
        elsewhere.append(RowKind.MESSAGE, "rooms/lobby", '"the first of the new file"')
        assert ann.read()["type"] == "missed"
        kinds = {"message", "presence"}
        while kinds:
            message = ann.read()
            kinds.discard(message["type"])
            if message["type"] == "presence":
                assert message["data"] == {"count": 1, "users": ["ann"]}
        site.broadcast("rooms/lobby", "hello")
        assert ann.read()["data"] == "hello"
        with site.app.app_context():
            assert site.litestack.cable.present("rooms/lobby").count == 1


# -- resuming -------------------------------------------------------------------------------------


def test_a_client_that_comes_back_gets_what_it_missed_once_and_in_order(
    site: Site, port: int
) -> None:
    with Client(port) as client:
        since = client.subscribe("posts/7")["id"]
    for number in range(20):
        site.broadcast("posts/7", number)
        site.broadcast("posts/8", -number)
    with Client(port) as client:
        assert client.subscribe("posts/7", since)["id"] == since
        site.broadcast("posts/7", 20)
        messages = [client.read() for _ in range(21)]
        assert [message["data"] for message in messages] == list(range(21))
        assert [m["id"] for m in messages] == sorted({m["id"] for m in messages})


def test_resuming_while_messages_come_loses_none_and_repeats_none(site: Site, port: int) -> None:
    total = 400
    start = site.last_id()

    def broadcast() -> None:
        for number in range(total):
            site.broadcast("posts/7", number)

    publisher = threading.Thread(target=broadcast)
    publisher.start()
    got: list[int] = []
    while len(got) < total:
        with Client(port) as client:
            client.subscribe("posts/7", start)
            for _ in range(min(random.randint(1, 60), total - len(got))):
                message = client.read()
                got.append(message["data"])
                start = message["id"]
    publisher.join()
    assert got == list(range(total))


def test_who_was_away_for_too_long_is_told(make_site: Callable[..., Site]) -> None:
    site = make_site(cable_log_size=20_000)
    with served(site.app) as port:
        since = site.last_id()
        for number in range(1500):
            site.broadcast("posts/7", number)
        with Client(port) as client:
            answer = client.subscribe("posts/7", since)
            assert answer["id"] == site.last_id()
            assert client.read() == {"type": "missed", "channel": "posts/7", "id": answer["id"]}
            site.broadcast("posts/7", "from here on")
            assert client.read()["data"] == "from here on"


def test_an_id_of_another_log_counts_as_missed(site: Site, port: int) -> None:
    with Client(port) as client:
        client.subscribe("posts/7", site.last_id() + 1000)
        assert client.read()["type"] == "missed"


@pytest.fixture
def elsewhere(site: Site) -> Iterator[Store]:
    """Another process's view of the log."""
    store = Store(site.app.config["LITESTACK_DATA_PATH"], retention=60, size=10_000_000)
    yield store
    store.close()


def test_who_missed_too_much_gets_all_that_comes_afterwards_though_the_hub_lags_behind(
    site: Site, port: int, elsewhere: Store
) -> None:
    with stepped(site) as hub, Client(port) as client:
        hub.begin_to_subscribe(client, "posts/18", since=5)
        elsewhere.append(RowKind.MESSAGE, "posts/18", '"the hub has not read it"')
        site.gate.set()
        hub.answer()
        elsewhere.append(RowKind.MESSAGE, "posts/18", '"next"')
        hub.go_on()
        assert [client.read()["type"] for _ in range(2)] == ["subscribed", "missed"]
        assert [client.read()["data"] for _ in range(2)] == ["the hub has not read it", "next"]


def test_what_is_replayed_is_not_sent_again_when_the_hub_reads_it(
    site: Site, port: int, elsewhere: Store
) -> None:
    with stepped(site) as hub, Client(port) as client:
        hub.begin_to_subscribe(client, "posts/18", since=site.last_id())
        elsewhere.append(RowKind.MESSAGE, "posts/18", '"the hub has not read it"')
        site.gate.set()
        hub.answer()
        elsewhere.append(RowKind.MESSAGE, "posts/18", '"next"')
        hub.go_on()
        assert client.read()["type"] == "subscribed"
        assert [client.read()["data"] for _ in range(2)] == ["the hub has not read it", "next"]


def test_more_than_can_be_held_counts_as_missed_and_what_comes_afterwards_arrives(
    make_site: Callable[..., Site],
) -> None:
    site = make_site(cable_buffer=3000)
    with served(site.app) as port, stepped(site) as hub, Client(port) as client:
        hub.begin_to_subscribe(client, "posts/18", since=site.last_id())
        for _ in range(4):
            site.broadcast("posts/18", "x" * 1000)
        hub.turn_until(lambda: hub.hub.position == site.last_id())
        site.gate.set()
        hub.answer()
        site.broadcast("posts/18", "next")
        hub.go_on()
        assert [client.read()["type"] for _ in range(2)] == ["subscribed", "missed"]
        assert client.read()["data"] == "next"


def test_a_client_that_goes_while_it_is_answered_takes_nobody_else_from_the_count(
    site: Site, port: int
) -> None:
    @site.litestack.channel("slow", presence="count")
    def slow() -> bool:
        return site.gate.wait(20)

    site.gate.set()
    with stepped(site) as hub, Client(port) as one, Client(port) as two, Client(port) as three:
        hub.subscribe(one, "slow")
        hub.subscribe(two, "slow")
        site.gate.clear()
        hub.begin_to_subscribe(three, "slow")
        reset(three)
        site.gate.set()
        hub.answer()
        assert hub.hub.clients == 2
        hub.turn_until(lambda: not hub.hub._reports._members.changed)
        with site.app.app_context():
            wait_until(lambda: site.litestack.cable.present("slow").count == 2)


def test_a_log_that_was_trimmed_before_it_was_read_is_told_once_also_beside_a_broken_client(
    site: Site, port: int, caplog: pytest.LogCaptureFixture
) -> None:
    with stepped(site) as hub, Client(port) as broken, Client(port) as client:
        hub.subscribe(broken, "posts/1")
        hub.subscribe(client, "posts/7")
        with site.app.app_context():
            store = site.litestack.cable._states.current().store
        reset(broken)
        store.listen(None, hub.hub._log.mailbox)  # the hub hears of nothing
        lost = store.append(RowKind.MESSAGE, "posts/7", '"lost"')
        last = store.append(RowKind.MESSAGE, "posts/7", '"last"')
        with store._writing() as connection:
            connection.execute("DELETE FROM litestack_cable_messages WHERE id <= ?", (lost,))
        hub.hub._log.look()
        hub.hub._catch_up()
        hub.go_on()
        assert client.read() == {"type": "missed", "channel": "posts/7", "id": lost}
        assert client.read()["id"] == last
        client.socket.settimeout(0.3)
        with pytest.raises(TimeoutError):
            client.read()
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


def test_nothing_older_follows_the_news_that_messages_were_missed(site: Site, port: int) -> None:
    with stepped(site) as hub, Client(port) as client:
        hub.subscribe(client, "posts/7")
        site.broadcast("posts/7", "waits to be sent")
        hub.hub._catch_up()
        hub.hub._missed_some(site.last_id() + 5)
        hub.hub._deliveries.send_some()
        assert client.read()["type"] == "missed"
        client.socket.settimeout(0.2)
        with pytest.raises(TimeoutError):
            client.read()


def test_who_subscribes_anew_during_a_broadcast_gets_it_once(
    site: Site, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    @site.litestack.channel("plain")
    def plain() -> bool:
        return True

    monkeypatch.setattr(deliveries, "CHUNK", 2)
    with stepped(site) as hub, Client(port) as a, Client(port) as b, Client(port) as last:
        for client in (a, b, last):
            hub.subscribe(client, "plain")
        since = site.last_id()
        site.broadcast("plain", "hello")
        hub.hub._catch_up()
        hub.hub._deliveries.send_some()  # to the first two
        last.send(type="unsubscribe", channel="plain")
        last.send(type="subscribe", channel="plain", since=since)
        # Neither sends the rest of the broadcast, which a turn would.
        client_last = next(reversed(hub.topic("plain").subscribers))
        wait_until(lambda: _read_all(hub.hub, client_last))
        hub.answer()
        hub.go_on()
        assert last.read()["type"] == "subscribed"
        assert last.read()["data"] == "hello"
        site.broadcast("plain", "next")
        assert last.read()["data"] == "next"


def _read_all(hub: Hub, client: object) -> bool:
    """Read what a client has sent, until its function is asked."""
    hub._connections.read(client)  # type: ignore[arg-type]
    return bool(client.busy)  # type: ignore[attr-defined]


def test_nothing_follows_the_close_frame(site: Site, port: int) -> None:
    @site.litestack.channel("refused later")
    def later() -> bool:
        site.gate.wait(20)
        return False

    with stepped(site) as hub, Client(port, receive_buffer=4096) as client:
        hub.begin_to_subscribe(client, "refused later")
        served_client = next(iter(hub.topic("refused later").pending))
        hub.hub._output.send_bytes(served_client, make_frame(0x89, b"x" * 120, mask=False) * 2000)
        assert served_client.out, "the client's buffer is full"
        hub.hub._connections.close(served_client, 1000)
        site.gate.set()
        hub.answer()
        hub.go_on()
        opcodes = []
        with suppress(ConnectionError):
            while True:
                opcodes.append(client.read_frame()[0])
        assert opcodes[-1] == 8
        assert opcodes.count(8) == 1


def test_leaving_is_not_told_when_the_process_ends(site: Site, port: int) -> None:
    with Client(port) as one, Client(port) as two:
        one.subscribe("posts/7")
        two.subscribe("posts/8")
        one.close()
        wait_until(lambda: site.seen)
        site.litestack.cable.stop()
        assert two.read_until_close() == 1001
        assert site.seen == [("left", None, 7)]

"""Requests that are wrong, and subscriptions that resume: nothing is lost, nothing comes twice."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

import pytest

from flask_litestack.cable.store import RowKind, Store

from .client import Client, wait_until
from .conftest import Site, served
from .stepped import reset, stepped


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


def test_leaving_is_not_told_when_the_process_ends(site: Site, port: int) -> None:
    with Client(port) as one, Client(port) as two:
        one.subscribe("posts/7")
        two.subscribe("posts/8")
        one.close()
        wait_until(lambda: site.seen)
        site.litestack.cable.stop()
        assert two.read_until_close() == 1001
        assert site.seen == [("left", None, 7)]

"""What reaches a client whose socket does not take everything at once."""

from __future__ import annotations

import time
from contextlib import suppress

from .client import Client, make_frame
from .conftest import Site
from .stepped import stepped


def test_a_large_message_reaches_a_slow_reader_whole(site: Site, port: int) -> None:
    with Client(port, receive_buffer=4096) as client:
        client.subscribe("posts/7")
        for number in range(2):
            site.broadcast("posts/7", [number] + ["é" * 10_000] * 5)
        time.sleep(0.3)
        for number in range(2):
            data = client.read()["data"]
            assert data == [number] + ["é" * 10_000] * 5


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

"""The hub as a whole: it goes on after errors, follows its log, and ends."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import pytest

from flask_litestack.cable.store import RowKind, Store

from .client import Client, Refused, wait_until
from .conftest import Site, served
from .stepped import reset, stepped
from .test_store import damage


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

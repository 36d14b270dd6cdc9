from __future__ import annotations

import select
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flask_litestack.cable.follower import Follower
from flask_litestack.cable.store import Row, RowKind, Store


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[tuple[Store, Store]]:
    """Two processes' views of one log; the second has nothing to do with the first."""
    pair = (
        Store(tmp_path, retention=60, size=10_000_000),
        Store(tmp_path, retention=60, size=10_000_000),
    )
    yield pair
    for store in pair:
        store.close()


def follow(follower: Follower, seconds: float, until: int) -> list[str]:
    """Do what the hub does, for some seconds or until there are ``until`` entries."""
    got: list[str] = []
    deadline = time.monotonic() + seconds
    while len(got) < until and (left := deadline - time.monotonic()) > 0:
        if select.select([follower], [], [], follower.wait_at_most(left))[0]:
            follower.wake()
        if follower.news:
            for row in follower.read():
                assert row.id == follower.position + 1
                follower.position = row.id
                got.append(row.data)
    return got


def is_awake(store: Store) -> bool:
    return any(path.suffix == ".sock" for path in store.run_path.iterdir())


def test_a_burst_is_followed_without_wake_ups_and_without_loss(
    stores: tuple[Store, Store],
) -> None:
    publisher, reader = stores
    follower = Follower(reader)
    try:
        hidden: list[bool] = []

        def publish() -> None:
            for number in range(3000):
                publisher.append(RowKind.MESSAGE, "news", str(number))
                if number % 100 == 0:
                    hidden.append(not is_awake(publisher))

        thread = threading.Thread(target=publish)
        thread.start()
        assert follow(follower, 30, 3000) == [str(number) for number in range(3000)]
        thread.join()
        assert any(hidden)
        assert follow(follower, 0.5, 1) == []
        assert is_awake(publisher)
        publisher.append(RowKind.MESSAGE, "news", "later")
        assert follow(follower, 10, 1) == ["later"]
    finally:
        follower.close()


def test_one_message_arrives_by_a_wake_up(stores: tuple[Store, Store]) -> None:
    publisher, reader = stores
    follower = Follower(reader)
    try:
        assert follow(follower, 0.05, 1) == []
        publisher.append(RowKind.MESSAGE, "news", "1")
        assert select.select([follower], [], [], 5)[0]
        assert follow(follower, 5, 1) == ["1"]
    finally:
        follower.close()


def test_a_message_that_comes_with_the_wake_up_is_not_read_from_the_file(
    stores: tuple[Store, Store],
) -> None:
    publisher, reader = stores
    follower = Follower(reader)
    try:
        first = publisher.append(RowKind.MESSAGE, "news", '"é"')
        follower.wake()
        reader.close()
        assert follower.read() == [Row(first, 0, "news", '"é"')]
        assert reader._follower.connection is None, "the file was not opened"
    finally:
        follower.close()


def test_a_wake_up_that_was_overtaken_or_lost_is_made_good_by_the_file(
    stores: tuple[Store, Store],
) -> None:
    publisher, reader = stores
    follower = Follower(reader)
    try:
        tell = publisher._tell
        publisher._tell = lambda row=None: None  # type: ignore[method-assign]
        publisher.append(RowKind.MESSAGE, "news", "1")
        publisher._tell = tell  # type: ignore[method-assign]
        publisher.append(RowKind.MESSAGE, "news", "2")
        assert follow(follower, 5, 2) == ["1", "2"]
        publisher.append(RowKind.MESSAGE, "news", "3")
        publisher.append(RowKind.MESSAGE, "news", "4")
        assert follow(follower, 5, 2) == ["3", "4"]
        for number in range(2000):  # more than the socket's queue holds
            publisher.append(RowKind.MESSAGE, "news", str(number))
        assert follow(follower, 5, 2000) == [str(number) for number in range(2000)]
        for size in (10, 700, 3000, 7990, 50_000):
            for letter in ("x", "é", "😀"):
                publisher.append(RowKind.MESSAGE, "news", letter * size)
                assert follow(follower, 5, 1) == [letter * size]
    finally:
        follower.close()

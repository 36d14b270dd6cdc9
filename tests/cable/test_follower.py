from __future__ import annotations

import select
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flask_litestack.cable.follower import Follower
from flask_litestack.cable.store import RowKind, Store


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

"""The bus alone: from a publish in one process to its arrival in another."""

from __future__ import annotations

import json
import multiprocessing
import selectors
import statistics
import time
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import redis

from flask_litestack.cable.follower import Follower
from flask_litestack.cable.store import RowKind, Store

#: A way to publish, and an iterator over what arrives.
Publish = Callable[[str], object]
Open = Callable[[str], tuple[Publish, Callable[[Event], Iterator[str]]]]


def ours(place: str) -> tuple[Publish, Callable[[Event], Iterator[str]]]:
    store = Store(Path(place), retention=3600, size=32 * 1024 * 1024)

    def receive(ready: Event) -> Iterator[str]:
        # As the hub does.
        follower = Follower(store)
        selector = selectors.DefaultSelector()
        selector.register(follower, selectors.EVENT_READ)
        ready.set()
        while True:
            if selector.select(follower.wait_at_most(2.0)):
                follower.wake()
            for row in follower.read():
                follower.position = row.id
                yield row.data

    return lambda data: store.append(RowKind.MESSAGE, "news", data), receive


def of_redis(place: str) -> tuple[Publish, Callable[[Event], Iterator[str]]]:
    client = redis.Redis.from_url(place)

    def receive(ready: Event) -> Iterator[str]:
        subscription = client.pubsub(ignore_subscribe_messages=True)
        subscription.subscribe("news")
        subscription.get_message(timeout=5)
        ready.set()
        for message in subscription.listen():
            yield message["data"].decode()

    return lambda data: client.publish("news", data), receive


def latency(open_bus: Open, place: str, *, count: int = 100) -> float:
    """Return the median time of ``count`` messages, 5 ms apart, in seconds."""
    times = _run(open_bus, place, count, pause=0.005)[0]
    return statistics.median(times)


def rate(open_bus: Open, place: str, *, count: int = 30_000) -> float:
    """Return messages per second, sent by one process and received by another."""
    return count / _run(open_bus, place, count, pause=0)[1]


def _run(open_bus: Open, place: str, count: int, pause: float) -> tuple[list[float], float]:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    ours, theirs = context.Pipe(duplex=False)
    receiver = context.Process(target=_receive, args=(open_bus, place, count, ready, theirs))
    receiver.start()
    publish, _ = open_bus(place)
    assert ready.wait(30)
    time.sleep(0.2)
    start = time.monotonic()
    for number in range(count):
        publish(json.dumps([number, time.monotonic()]))
        if pause:
            time.sleep(pause)
    numbers, times, end = ours.recv()
    receiver.join()
    assert numbers == list(range(count)), "messages were lost or out of order"
    return times, end - start


def _receive(open_bus: Open, place: str, count: int, ready: Event, pipe: Any) -> None:
    numbers, times = [], []
    for data in open_bus(place)[1](ready):
        number, sent = json.loads(data)
        times.append(time.monotonic() - sent)
        numbers.append(number)
        if len(numbers) == count:
            break
    pipe.send((numbers, times, time.monotonic()))

"""What is counted."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from flask_litestack.cache import SQLiteCache

from .clock import Clock

Make = Callable[..., SQLiteCache]


def test_statistics_are_of_all_processes(make: Make, clock: Clock) -> None:
    one, other = make(), make()
    one.set("key", 1, 10)
    other.get("key")
    other.get("none")
    assert other.stats().hits == 1
    stats = one.stats()
    assert (stats.entries, stats.hits, stats.misses, stats.writes) == (1, 1, 1, 1)
    assert stats.hit_rate == 0.5
    clock.advance(10)
    assert one.stats().expired == 1
    assert one.stats().hits == 1


def test_a_look_up_of_get_or_set_counts_once(cache: SQLiteCache) -> None:
    def compute() -> int:
        time.sleep(0.2)
        return 1

    threads = [threading.Thread(target=cache.get_or_set, args=("key", compute)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cache.get_or_set("key", compute)
    stats = cache.stats()
    assert (stats.hits, stats.misses) == (1, 4)

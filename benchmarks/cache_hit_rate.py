"""Simulate what is evicted: ``python -m benchmarks.cache_hit_rate``. About two minutes.

Hit rates, in percent, of five believable traces, with first-in-first-out, true LRU and SIEVE
beside the policy of the cache (flask_litestack/cache/recency.py), whose own code is run. Entries
are of one size, so that capacities are numbers of entries. The exit code is 1 if ours is more than
two points below LRU anywhere, or not better than first-in-first-out.

SIEVE is from Zhang et al., "SIEVE is Simpler than LRU" (NSDI 2024).
"""

from __future__ import annotations

import bisect
import itertools
import random
import sys
import tempfile
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from flask_litestack.cache.recency import BYTES_PER_SLOT, Recency
from flask_litestack.cache.room import INSERTS_PER_EVICTION, WINDOW

REQUESTS = 100_000
CAPACITIES = (500, 2_000, 5_000)

#: The size of an entry, in bytes: an ordinary fragment of a page.
ENTRY = 16 * BYTES_PER_SLOT

Trace = Sequence[int]


def zipf(rng: random.Random, count: int, exponent: float) -> Callable[[], int]:
    """Draw numbers below ``count``; the n-th most popular has the weight 1/n**exponent."""
    weights = list(itertools.accumulate(1 / (n + 1) ** exponent for n in range(count)))
    return lambda: bisect.bisect(weights, rng.random() * weights[-1])


def popular_pages(rng: random.Random) -> Iterator[int]:
    """Pages whose popularity does not change."""
    draw = zipf(rng, 50_000, 0.9)
    while True:
        yield draw()


def news(rng: random.Random) -> Iterator[int]:
    """A new page every 20 requests; interest falls with age."""
    draw = zipf(rng, 20_000, 0.8)
    for i in itertools.count():
        yield 20_000 + i // 20 - draw()


def crawlers(rng: random.Random) -> Iterator[int]:
    """Popular pages, and two requests in five for something that nobody asks for again."""
    draw, once = zipf(rng, 20_000, 0.9), itertools.count(10**6)
    while True:
        yield draw() if rng.random() < 0.6 else next(once)


def scans(rng: random.Random) -> Iterator[int]:
    """Popular pages; now and then a job goes through 15,000 others."""
    draw = zipf(rng, 30_000, 0.9)
    while True:
        for _ in range(20_000):
            yield draw()
        for page in range(10**6, 10**6 + 15_000):
            yield page
            if rng.random() < 0.7:
                yield draw()


def visitors(rng: random.Random) -> Iterator[int]:
    """200 visitors at a time, each with four fragments of his own, who come and go."""
    draw, numbers = zipf(rng, 5_000, 1.0), itertools.count()
    present: list[list[int]] = []
    while True:
        if len(present) < 200 or rng.random() < 0.03:
            present.append([next(numbers), rng.randint(5, 30)])
        visitor = rng.choice(present)
        own = rng.random() < 0.6
        yield 10**7 + visitor[0] * 4 + rng.randrange(4) if own else draw()
        visitor[1] -= 1
        if visitor[1] == 0:
            present.remove(visitor)


TRACES = (popular_pages, news, crawlers, scans, visitors)


def first_in_first_out(trace: Trace, capacity: int) -> int:
    queue: deque[int] = deque()
    present: set[int] = set()
    hits = 0
    for key in trace:
        if key in present:
            hits += 1
            continue
        present.add(key)
        queue.append(key)
        if len(queue) > capacity:
            present.discard(queue.popleft())
    return hits


def lru(trace: Trace, capacity: int) -> int:
    present: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for key in trace:
        if key in present:
            hits += 1
            present.move_to_end(key)
            continue
        present[key] = None
        if len(present) > capacity:
            present.popitem(last=False)
    return hits


def sieve(trace: Trace, capacity: int) -> int:
    visited: dict[int, bool] = {}
    newer: dict[int, int | None] = {}  # a list from the oldest to the newest
    older: dict[int, int | None] = {}
    oldest: int | None = None
    newest: int | None = None
    hand: int | None = None
    hits = 0
    for key in trace:
        if key in visited:
            hits += 1
            visited[key] = True
            continue
        if len(visited) >= capacity:
            victim = oldest if hand is None else hand
            assert victim is not None
            while visited[victim]:
                visited[victim] = False
                following = newer[victim]
                victim = oldest if following is None else following
                assert victim is not None
            hand = after = newer.pop(victim)
            before = older.pop(victim)
            del visited[victim]
            if before is None:
                oldest = after
            else:
                newer[before] = after
            if after is None:
                newest = before
            else:
                older[after] = before
        visited[key] = False
        newer[key], older[key] = None, newest
        if newest is None:
            oldest = key
        else:
            newer[newest] = key
        newest = key
    return hits


def ours(trace: Trace, capacity: int) -> int:
    with tempfile.TemporaryDirectory() as folder:
        recency = Recency(Path(folder, "recency"), capacity * ENTRY, "simulation")
        hits = _ours(trace, capacity, recency)
        recency.close()
    return hits


def _ours(trace: Trace, capacity: int, recency: Recency) -> int:
    rng = random.Random(1)
    numbers: dict[int, int] = {}  # what the hash makes of a key
    present: list[int] = []
    hits = inserts = 0
    for key in trace:
        number = numbers.setdefault(key, rng.getrandbits(63))
        at = bisect.bisect_left(present, number)
        if at < len(present) and present[at] == number:
            hits += 1
            recency.read(number)
            continue
        present.insert(at, number)
        recency.wrote((number,), ENTRY)
        inserts += 1
        if len(present) > capacity and inserts % INSERTS_PER_EVICTION == 0:
            window = present[at + 1 : at + 1 + WINDOW]
            window += present[: WINDOW - len(window)]
            for victim in recency.oldest_first(window)[: len(present) - capacity]:
                del present[bisect.bisect_left(present, victim)]
    return hits


POLICIES = (first_in_first_out, lru, sieve, ours)


def main() -> int:
    names = [policy.__name__.replace("_", " ") for policy in POLICIES]
    print(f"| trace | entries | {' | '.join(names)} |")
    print("|---" * (len(names) + 2) + "|")
    missed = 0
    for make in TRACES:
        trace = list(itertools.islice(make(random.Random(1)), REQUESTS))
        for capacity in CAPACITIES:
            rates = [100 * policy(trace, capacity) / len(trace) for policy in POLICIES]
            fifo_rate, lru_rate, _, our_rate = rates
            cells = " | ".join(f"{rate:.1f}" for rate in rates)
            missed += our_rate < lru_rate - 2 or our_rate <= fifo_rate
            print(f"| {make.__name__.replace('_', ' ')} | {capacity} | {cells} |", flush=True)
    print("MISS" if missed else "PASS", " within two points of LRU, and better than FIFO")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())

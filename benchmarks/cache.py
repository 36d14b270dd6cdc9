"""Measure the cache beside its peers: ``python -m benchmarks.cache [--quick] [--json FILE]``.

Everything runs in one go and interleaved: each round runs every operation on every peer, and the
figures are the medians of the rounds. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import itertools
import json
import pickle
import platform
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from flask import Flask
from flask_caching import Cache
from flask_caching.backends import FileSystemCache, RedisCache, SimpleCache

from flask_litestack.cache import SQLiteCache
from flask_litestack.sqlite import driver

ROUNDS = 5
KEYS = 10_000
MANY = 50

#: Seconds of each run of one operation on one peer.
SECONDS = 0.25

#: Bytes of the values.
SIZES = (10, 100, 1_000, 10_000, 100_000)
USUAL = 100

#: Bytes of the caches that are full.
FULL = 16 << 20

#: A call of this does one operation.
Operation = Callable[[], object]


@dataclass(frozen=True)
class Peer:
    """A named cache; ``open()`` makes one in the process that will use it."""

    name: str
    open: Callable[[], Any]
    shared: bool = True  # between processes


@functools.cache
def number(key: str) -> int:
    """The id of a key, for the bare driver."""
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


class Bare:
    """The driver alone: a prepared statement for each operation, and pickle."""

    def __init__(self, path: Path) -> None:
        self._local = threading.local()
        self._path = path
        path.parent.mkdir(exist_ok=True)
        self._connect().execute(
            "CREATE TABLE IF NOT EXISTS entries (id INTEGER PRIMARY KEY, value BLOB)"
        )

    def _connect(self) -> driver.Connection:
        connection = driver.module.connect(self._path, isolation_level=None, timeout=5)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA cache_size = -4096")
        return connection

    @property
    def _run(self) -> Callable[..., driver.Cursor]:
        run: Callable[..., driver.Cursor] | None = getattr(self._local, "run", None)
        if run is None:
            run = self._local.run = self._connect().cursor().execute
        return run

    def get(self, key: str) -> Any:
        row = self._run("SELECT value FROM entries WHERE id = ?", (number(key),)).fetchone()
        return None if row is None else pickle.loads(row[0])

    def set(self, key: str, value: Any, timeout: Any = None) -> None:
        self._run("REPLACE INTO entries VALUES (?, ?)", (number(key), pickle.dumps(value, 5)))

    def set_many(self, mapping: dict[str, Any]) -> None:
        run = self._run
        run("BEGIN IMMEDIATE")
        for key, value in mapping.items():
            run("REPLACE INTO entries VALUES (?, ?)", (number(key), pickle.dumps(value, 5)))
        run("COMMIT")


class DiskCache:
    """diskcache with the methods of a backend of Flask-Caching."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._cache = make()
        self.get = self._cache.get
        self.inc = self._cache.incr

    def set(self, key: str, value: Any, timeout: float | None = 300) -> None:
        self._cache.set(key, value, expire=timeout)

    def get_many(self, *keys: str) -> list[Any]:
        get = self._cache.get
        return [get(key) for key in keys]

    def set_many(self, mapping: dict[str, Any]) -> None:
        with self._cache.transact():
            for key, value in mapping.items():
                self._cache.set(key, value, expire=300)


OURS, WRAPPED, BARE = "ours", "ours in Flask-Caching", "bare driver"
SIMPLE, FILES = "SimpleCache", "FileSystemCache"
REDIS, REDIS_PYTHON = "RedisCache", "RedisCache, no hiredis"
DISK, FANOUT = "diskcache", "diskcache Fanout"


def peers(folder: Path, redis_port: int | None, size: int) -> list[Peer]:
    """Every cache, in a folder of its own, with room for ``size`` bytes where that can be said."""
    found = [
        Peer(OURS, lambda: SQLiteCache(folder / "ours", size=size, key_prefix="flask_cache_")),
        Peer(WRAPPED, lambda: wrapped(folder / "wrapped", size)),
        Peer(BARE, lambda: Bare(folder / "bare.sqlite3")),
        Peer(SIMPLE, lambda: SimpleCache(threshold=10 * KEYS), shared=False),
        Peer(FILES, lambda: FileSystemCache(str(folder / "files"), threshold=0)),
    ]
    if redis_port is not None:
        found += [
            Peer(REDIS, lambda: redis_cache(redis_port, hiredis=True)),
            Peer(REDIS_PYTHON, lambda: redis_cache(redis_port, hiredis=False)),
        ]
    try:
        import diskcache
    except ImportError:
        print("NOT RUN: diskcache (pip install diskcache)")
    else:
        one = functools.partial(diskcache.Cache, str(folder / "disk"), size_limit=size)
        fan = functools.partial(diskcache.FanoutCache, str(folder / "fanout"), size_limit=size)
        found.append(Peer(DISK, lambda: DiskCache(one)))
        found.append(Peer(FANOUT, lambda: DiskCache(fan)))
    return found


def wrapped(folder: Path, size: int) -> Cache:
    """Our backend as an app sees it: through Flask-Caching's object, in an app context."""
    app = Flask("bench")
    app.config.update(
        CACHE_TYPE="flask_litestack.SQLiteCache",
        LITESTACK_DATA_PATH=folder,
        LITESTACK_CACHE_SIZE=size,
    )
    cache = Cache(app)
    app.app_context().push()
    return cache


def redis_cache(port: int, hiredis: bool) -> RedisCache:
    """Flask-Caching's backend for Redis, on TCP as it comes."""
    import redis
    from redis import _parsers

    parser = _parsers._HiredisParser if hiredis else _parsers._RESP2Parser
    pool = redis.ConnectionPool(
        host="127.0.0.1", port=port, parser_class=parser, protocol=2 if not hiredis else 3
    )
    return RedisCache(redis.Redis(connection_pool=pool), key_prefix="flask_cache_")


@contextlib.contextmanager
def redis_server(folder: Path) -> Iterator[int | None]:
    """A Redis server that saves nothing, as a cache is run."""
    try:
        import hiredis as _
        import redis
    except ImportError:
        print("NOT RUN: Redis (pip install redis hiredis)")
        yield None
        return
    if shutil.which("redis-server") is None:
        print("NOT RUN: Redis (apt-get install redis-server)")
        yield None
        return
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    options = {
        "port": port,
        "bind": "127.0.0.1",
        "save": "",
        "appendonly": "no",
        "dir": folder,
        "maxmemory-policy": "allkeys-lru",
    }
    arguments = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    server = subprocess.Popen(["redis-server", *arguments], stdout=subprocess.DEVNULL)
    try:
        client = redis.Redis(port=port)
        for _ in range(100):
            try:
                client.ping()
                break
            except redis.ConnectionError:
                time.sleep(0.05)
        yield port
    finally:
        server.terminate()
        server.wait()


# -- operations -------------------------------------------------------------------------------


def shuffled() -> Iterator[str]:
    """Keys as they are looked up, without end."""
    keys = [f"view//posts/{i}" for i in range(KEYS)]
    random.Random(7).shuffle(keys)
    return itertools.cycle(keys)


def fill(cache: Any, value: Any) -> None:
    names = [f"view//posts/{i}" for i in range(KEYS)]
    for start in range(0, KEYS, 200):
        cache.set_many(dict.fromkeys(names[start : start + 200], value))


def get(cache: Any, value: Any) -> Operation:
    names = shuffled()
    assert cache.get(next(names)) == value
    look = cache.get
    return lambda: look(next(names))


def miss(cache: Any, value: Any) -> Operation:
    names = shuffled()
    look = cache.get
    return lambda: look(next(names) + "-")


def store(cache: Any, value: Any) -> Operation:
    names = shuffled()
    put = cache.set
    return lambda: put(next(names), value)


def store_new(cache: Any, value: Any) -> Operation:
    count = itertools.count()
    who = random.random()
    put = cache.set
    return lambda: put(f"view//posts/{who}/{next(count)}", value)


def increase(cache: Any, value: Any) -> Operation:
    cache.set("count", 0)
    inc = cache.cache.inc if isinstance(cache, Cache) else cache.inc
    return lambda: inc("count")


def get_many(cache: Any, value: Any) -> Operation:
    names = shuffled()
    look = cache.get_many
    return lambda: look(*itertools.islice(names, MANY))


def set_many(cache: Any, value: Any) -> Operation:
    names = shuffled()
    put = cache.set_many
    return lambda: put(dict.fromkeys(itertools.islice(names, MANY), value))


OPERATIONS: dict[str, Callable[[Any, Any], Operation]] = {
    "get": get,
    "get, a miss": miss,
    "set": store,
    "inc": increase,
    f"get_many({MANY})": get_many,
    f"set_many({MANY})": set_many,
}


def loop(operation: Operation, seconds: float) -> float:
    """Run an operation for a while; return how often a second."""
    clock = time.perf_counter
    done = 0
    start = clock()
    end = start + seconds
    while (now := clock()) < end:
        for _ in range(20):
            operation()
        done += 20
    return done / (now - start)


def in_threads(make: Callable[[], Operation], count: int, seconds: float) -> float:
    rates: list[float] = []
    operations = [make() for _ in range(count)]
    threads = [
        threading.Thread(target=lambda op=op: rates.append(loop(op, seconds))) for op in operations
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(rates)


def in_processes(peer: Peer, make: Callable[[Any, Any], Operation], value: Any) -> float:
    context = get_context("fork")
    barrier = context.Barrier(2)
    queue = context.Queue()

    def work() -> None:
        operation = make(peer.open(), value)
        barrier.wait()
        queue.put(loop(operation, SECONDS))

    workers = [context.Process(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    rate = sum(float(queue.get(timeout=60)) for _ in workers)
    for worker in workers:
        worker.join()
    return rate


def stampede(cache: Any) -> tuple[int, float]:
    """Let 8 threads ask for a page that takes 50 ms; return computations and the time of all."""
    calls = []

    def compute() -> str:
        calls.append(1)
        time.sleep(0.05)
        return "page"

    def ask() -> None:
        if hasattr(cache, "get_or_set"):
            cache.get_or_set(key, compute)
        elif cache.get(key) is None:
            cache.set(key, compute())

    key = f"stampede-{random.random()}"
    threads = [threading.Thread(target=ask) for _ in range(8)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(calls), time.perf_counter() - start


# -- the run ----------------------------------------------------------------------------------

Figures = dict[str, dict[str, list[float]]]


def in_turn(caches: dict[str, Any], turn: int) -> list[tuple[str, Any]]:
    """The caches in another order each time: the first one finds the processor's caches cold."""
    found = list(caches.items())
    turn %= len(found)
    return found[turn:] + found[:turn]


def supports(cache: Any, name: str) -> bool:
    """The bare driver has no inc and no get_many."""
    if isinstance(cache, Bare):
        return not name.startswith(("inc", "get_many"))
    return True


def one_thread(found: list[Peer], figures: Figures, rounds: int, seconds: float) -> None:
    caches = {peer.name: peer.open() for peer in found}
    value = "x" * USUAL
    for cache in caches.values():
        fill(cache, value)
    for turn in range(rounds):
        for name, make in OPERATIONS.items():
            for peer, cache in in_turn(caches, turn):
                if supports(cache, name):
                    figures[name][peer].append(loop(make(cache, value), seconds))
        for name in ("get", "set"):
            for peer, cache in in_turn(caches, turn):
                if peer == WRAPPED:
                    continue  # its app context is the main thread's
                make_one = functools.partial(OPERATIONS[name], cache, value)
                figures[f"{name}, 4 threads"][peer].append(in_threads(make_one, 4, seconds))
        for peer, cache in caches.items():
            if peer not in (BARE, WRAPPED, REDIS_PYTHON, FANOUT):
                calls, took = stampede(cache)
                figures["stampede: computations"][peer].append(calls)
                figures["stampede: ms"][peer].append(took * 1e3)


def look_up_of(size: int, cache: Any) -> Operation:
    names = itertools.cycle([f"size-{size}-{i}" for i in range(100)])
    look = cache.get
    return lambda: look(next(names))


def store_of(size: int, cache: Any) -> Operation:
    names = itertools.cycle([f"size-{size}-{i}" for i in range(100)])
    put = cache.set
    value = "x" * size
    return lambda: put(next(names), value)


def sizes(found: list[Peer], figures: Figures, rounds: int, seconds: float) -> None:
    caches = {p.name: p.open() for p in found if p.name not in (WRAPPED, REDIS_PYTHON, FANOUT)}
    for size in SIZES:
        if size == USUAL:
            continue
        value = "x" * size
        for cache in caches.values():
            cache.set_many({f"size-{size}-{i}": value for i in range(100)})
        for turn in range(rounds):
            for peer, cache in in_turn(caches, turn):
                rate = loop(look_up_of(size, cache), seconds)
                figures[f"get of {size:,} B"][peer].append(rate)
            for peer, cache in in_turn(caches, turn):
                rate = loop(store_of(size, cache), seconds)
                figures[f"set of {size:,} B"][peer].append(rate)


def two_processes(found: list[Peer], figures: Figures, rounds: int) -> None:
    value = "x" * USUAL
    shared = [peer for peer in found if peer.shared and peer.name not in (WRAPPED, REDIS_PYTHON)]
    for peer in shared:
        # Filled in a process of its own: what is forked here has opened nothing.
        filler = get_context("fork").Process(target=lambda peer=peer: fill(peer.open(), value))
        filler.start()
        filler.join()
    for _ in range(rounds):
        for name in ("get", "set"):
            for peer in shared:
                rate = in_processes(peer, OPERATIONS[name], value)
                figures[f"{name}, 2 processes"][peer.name].append(rate)


def when_full(found: list[Peer], figures: Figures, rounds: int, seconds: float, port: Any) -> None:
    if port is not None:
        import redis

        redis.Redis(port=port).flushall()
        redis.Redis(port=port).config_set("maxmemory", FULL)
    caches = {
        peer.name: peer.open()
        for peer in found
        if peer.name in (OURS, REDIS, REDIS_PYTHON, DISK, FANOUT)
    }
    value = "x" * USUAL
    for cache in caches.values():
        for start in range(0, 120_000, 500):
            cache.set_many({f"fill-{i}": value for i in range(start, start + 500)})
        loop(store_new(cache, value), seconds)
    for turn in range(rounds):
        for peer, cache in in_turn(caches, turn):
            figures["set, full"][peer].append(loop(store_new(cache, value), seconds))
        for peer, cache in in_turn(caches, turn):
            who = random.random()
            count = itertools.count()

            def put(cache: Any = cache, who: float = who, count: Any = count) -> None:
                cache.set_many({f"{who}/{next(count)}": value for _ in range(MANY)})

            figures[f"set_many({MANY}), full"][peer].append(loop(put, seconds))
    assert caches[OURS].stats().evictions > 0


def counting_share(get_rate: float) -> float:
    """The part of a get that counting it takes."""

    class Counter:
        hits = 0

    counter = Counter()
    start = time.perf_counter()
    for _ in range(1_000_000):
        counter.hits += 1
    with_loop = time.perf_counter() - start
    start = time.perf_counter()
    for _ in range(1_000_000):
        pass
    return (with_loop - (time.perf_counter() - start)) / 1e6 * get_rate


# -- the report -------------------------------------------------------------------------------


def targets(m: dict[str, dict[str, float]]) -> list[tuple[str, float, float]]:
    """What is to be reached: its name, the ratio found, and the least one."""
    many_get, many_set = f"get_many({MANY})", f"set_many({MANY})"
    found = [
        ("get of a bare SELECT and unpickling", m["get"][OURS] / m["get"][BARE], 0.7),
        (
            "get with 4 threads of the bare driver's",
            m["get, 4 threads"][OURS] / m["get, 4 threads"][BARE],
            0.8,
        ),
        ("get without counting", 1 - counting_share(m["get"][OURS]), 0.95),
    ]
    if REDIS in m["get"]:
        found += [
            ("get of RedisCache's", m["get"][OURS] / m["get"][REDIS], 10),
            ("set of RedisCache's", m["set"][OURS] / m["set"][REDIS], 3),
            ("set when full of RedisCache's", m["set, full"][OURS] / m["set, full"][REDIS], 3),
            (f"{many_get} of RedisCache's", m[many_get][OURS] / m[many_get][REDIS], 3),
            (f"{many_set} of RedisCache's", m[many_set][OURS] / m[many_set][REDIS], 2),
        ]
    if DISK in m["get"]:
        found += [
            ("set of diskcache's", m["set"][OURS] / m["set"][DISK], 2),
            ("set when full of diskcache's", m["set, full"][OURS] / m["set, full"][DISK], 2),
        ]
    return found


def table(medians: dict[str, dict[str, float]], names: list[str]) -> str:
    lines = [f"| per second | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for operation, by_peer in medians.items():
        cells = (f"{by_peer[name]:,.0f}" if name in by_peer else "" for name in names)
        lines.append(f"| {operation} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke test of a minute")
    parser.add_argument("--json", type=Path, help="write the medians here")
    parser.add_argument("--dir", type=Path, help="where the files are")
    arguments = parser.parse_args()
    rounds, seconds = (2, 0.1) if arguments.quick else (ROUNDS, SECONDS)
    figures: Figures = defaultdict(lambda: defaultdict(list))
    folder = Path(tempfile.mkdtemp(dir=arguments.dir))
    try:
        with redis_server(folder) as port:
            two_processes(peers(folder / "two", port, 128 << 20), figures, rounds)
            one_thread(peers(folder / "one", port, 128 << 20), figures, rounds, seconds)
            sizes(peers(folder / "sizes", port, 128 << 20), figures, rounds, seconds)
            when_full(peers(folder / "full", port, FULL), figures, rounds, seconds, port)
    finally:
        shutil.rmtree(folder)
    medians = {
        operation: {peer: statistics.median(rates) for peer, rates in by_peer.items()}
        for operation, by_peer in figures.items()
    }
    names = list(dict.fromkeys(peer for by_peer in medians.values() for peer in by_peer))
    names.sort(key=[OURS, WRAPPED, BARE, SIMPLE, FILES, REDIS, REDIS_PYTHON, DISK, FANOUT].index)
    print(f"Python {platform.python_version()}, SQLite {driver.version} ({driver.name})\n")
    print(table(medians, names))
    if arguments.json:
        arguments.json.write_text(json.dumps(medians, indent=2))
    missed = 0
    print()
    for what, ratio, least in targets(medians):
        verdict = "PASS" if ratio >= least else "MISS"
        missed += verdict == "MISS"
        print(f"{verdict}  {what}: {ratio:.2f} (to reach: {least})")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())

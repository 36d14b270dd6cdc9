"""Measure the jobs beside their peers: ``python -m benchmarks.jobs [--quick] [--json FILE]``.

Each peer runs one worker with four threads (Celery: four processes; RQ: one job at a time, as it
does) on a broker of its own on this machine. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from . import _postgres

TREE = Path(__file__).parent.parent
BIN = Path(sys.executable).parent

OURS, HUEY, HUEY_REDIS = "flask-litestack", "huey, SQLite", "huey, Redis"
RQ, CELERY, DRAMATIQ, PROCRASTINATE = "RQ", "Celery", "Dramatiq", "procrastinate"

#: Peer -> the module of its tasks, what it needs, and how many jobs to drain.
PEERS = {
    OURS: ("ours", "", 20_000),
    HUEY: ("huey_sqlite", "", 5_000),
    HUEY_REDIS: ("huey_redis", "redis", 5_000),
    RQ: ("rq_app", "redis", 200),
    CELERY: ("celery_app", "redis", 4_000),
    DRAMATIQ: ("dramatiq_app", "redis", 5_000),
    PROCRASTINATE: ("procrastinate_app", "postgres", 1_000),
}

_misses: list[str] = []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller numbers: a smoke test")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--idle", type=float, default=60.0, help="seconds to idle before pick-up")
    parser.add_argument("--peers", help="only these modules of jobs_apps, e.g. ours,huey_redis")
    options = parser.parse_args()
    if options.quick:
        options.idle = min(options.idle, 5.0)
    with tempfile.TemporaryDirectory(prefix="bench-jobs-") as name:
        os.chmod(name, 0o755)
        folder = Path(name)
        os.environ["BENCH_FOLDER"] = name
        with _brokers(folder) as brokers:
            figures = _measure(options, folder, brokers)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2))
    print(f"\n{len(_misses)} targets missed" + "".join(f"\n  {miss}" for miss in _misses))
    return 1 if _misses else 0


def _measure(options: argparse.Namespace, folder: Path, brokers: set[str]) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    wanted = [p for p in PEERS if not options.peers or PEERS[p][0] in options.peers.split(",")]
    header = (
        "enqueue/s  drain/s  write/s  pick-up p50  p99 ms  after idle p50  p99  idle CPU %  PSS MB"
    )
    print(f"{'':<18}{header}")
    for peer in wanted:
        module_name, needs, count = PEERS[peer]
        if needs and needs not in brokers:
            print(f"{peer:<18}NOT RUN: no {needs}")
            continue
        try:
            module = importlib.import_module(f"benchmarks.jobs_apps.{module_name}")
        except ImportError as error:
            print(f"{peer:<18}NOT RUN: {error}")
            continue
        has_writes = hasattr(module, "write") and (peer == OURS or "postgres" in brokers)
        count = count // 5 if options.quick else count
        figures[peer] = _measure_peer(module, folder, count, has_writes, options)
        print(f"{peer:<18}{_line(figures[peer])}", flush=True)
    if OURS in figures:
        _compare(figures)
        figures["ours alone"] = _measure_ours(options, folder)
    return figures


def _measure_peer(
    module: Any, folder: Path, count: int, has_writes: bool, options: argparse.Namespace
) -> dict[str, float]:
    client = module.Client()
    found: dict[str, float] = {}
    found["enqueue"], found["drain"] = _enqueue_and_drain(module, client, folder, "noop", count)
    if has_writes:
        found["write"] = _enqueue_and_drain(module, client, folder, "write", count // 4)[1]
    with _worker(module, folder) as worker:
        _marks(folder).unlink(missing_ok=True)
        _pick_up(client, folder, 3)
        samples = _pick_up(client, folder, 40 if options.quick else 200)
        found["pickup_p50"], found["pickup_p99"] = _p50_p99(samples)
        before = _cpu(worker.pid)
        time.sleep(options.idle)
        found["idle_cpu"] = (_cpu(worker.pid) - before) / options.idle * 100
        samples = _pick_up(client, folder, 20, pause=0.2)
        found["late_p50"], found["late_p99"] = _p50_p99(samples)
        found["pss"] = _pss(worker.pid)
    return found


def _enqueue_and_drain(
    module: Any, client: Any, folder: Path, task: str, count: int
) -> tuple[float, float]:
    """Jobs enqueued per second, and, by a worker started afterwards, run per second."""
    _marks(folder).unlink(missing_ok=True)
    client.enqueue("mark", -1)
    began = time.perf_counter()
    for n in range(count):
        client.enqueue(task, n)
    enqueue = count / (time.perf_counter() - began)
    client.enqueue("mark", -2)
    with _worker(module, folder):
        first, last = (moment for _, moment in _wait_for_marks(folder, 2))
    return enqueue, count / (last - first)


def _pick_up(client: Any, folder: Path, count: int, pause: float = 0.02) -> list[float]:
    """Seconds from before enqueue() to the beginning of the job, one job at a time."""
    samples = []
    for n in range(count):
        before = len(_read_marks(folder))
        began = time.time()
        client.enqueue("mark", n)
        samples.append(_wait_for_marks(folder, before + 1)[-1][1] - began)
        time.sleep(pause)
    return samples


# -- what only we promise -------------------------------------------------------------------------


def _measure_ours(options: argparse.Namespace, folder: Path) -> dict[str, float]:
    from flask_litestack.jobs.schema import SCHEMA
    from flask_litestack.sqlite import driver

    from .jobs_apps import ours

    scale = 5 if options.quick else 1
    database, jobs = ours.litestack.db, ours.litestack.jobs
    found: dict[str, float] = {}
    ours.noop.enqueue(0)
    bare = driver.module.connect(folder / "bare.sqlite3", isolation_level=None)
    bare.execute("PRAGMA journal_mode = WAL")
    bare.execute("PRAGMA synchronous = NORMAL")
    bare.execute("PRAGMA wal_autocheckpoint = 4000")
    for statement in SCHEMA.upgrades[0]:
        bare.execute(statement)
    insert = (
        "INSERT INTO litestack_jobs (state, queue, priority, task, arguments, created_at, run_at) "
        "VALUES ('queued', 'default', 0, 'noop', ?, ?, ?)"
    )

    def bare_enqueue(n: int) -> None:
        now = time.time()
        bare.execute(insert, (json.dumps([[n]]), now, now))

    def commit(n: int) -> None:
        database.session.add(ours.Row(n=n))
        database.session.commit()

    def joined(n: int) -> None:
        database.session.add(ours.Row(n=n))
        ours.noop.enqueue(n)
        database.session.commit()

    times = _interleaved(
        {"bare": bare_enqueue, "enqueue": ours.noop.enqueue, "commit": commit, "joined": joined},
        2_000 // scale,
    )
    _target("enqueue of a bare loop, %", times["bare"] / times["enqueue"] * 100, at_least=50)
    _target("joined beyond the commit, us", (times["joined"] - times["commit"]) * 1e6, at_most=80)

    count = 100_000 // scale
    rounds: list[float] = []
    for _ in range(3):
        began = time.perf_counter()
        jobs.enqueue_many(ours.noop.call(n) for n in range(count))
        bulk = time.perf_counter() - began
        began = time.perf_counter()
        bare.execute("BEGIN")
        bare.executemany(
            insert, [(json.dumps([[n]]), time.time(), time.time()) for n in range(count)]
        )
        bare.execute("COMMIT")
        rounds.append(bulk / (time.perf_counter() - began))
    _target(f"bulk of {count:,}, times a bare executemany", statistics.median(rounds), at_most=2)
    bare.close()
    _empty(jobs)
    found |= _beside_many(options, folder, ours)
    found |= _killed(folder, ours)
    found |= _web_writer(options, folder, ours)
    found["pss_role"] = _pss_as_a_role()
    return found | times


def _pss_as_a_role() -> float:
    """Megabytes that the jobs role adds to a server of gunicorn, after it has run a job."""
    without, added = _pss_of_server(has_jobs=False), _pss_of_server(has_jobs=True)
    added -= without
    print(f"  worker as a role of gunicorn's: {added:.1f} MB more than {without:.1f} (PSS)")
    return added


def _pss_of_server(*, has_jobs: bool) -> float:
    from .jobs_apps import ours

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [str(BIN / "gunicorn"), "--bind", address, "--access-logfile", os.devnull]
    command += ["--config", "python:flask_litestack.gunicorn"]
    process = subprocess.Popen(
        [*command, "benchmarks.jobs_apps.ours:create_app()"],
        cwd=TREE,
        env={**os.environ, "FLASK_LITESTACK_JOBS_IN_SERVER": json.dumps(has_jobs)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait(lambda: len(_tree(process.pid)) == 2 + has_jobs)
        if has_jobs:
            job = ours.noop.enqueue(0)
            _wait(lambda: ours.litestack.jobs.get(job.id).state == "succeeded")
        time.sleep(1.0)
        return _pss(process.pid)
    finally:
        process.terminate()
        process.wait()


def _beside_many(options: argparse.Namespace, folder: Path, ours: Any) -> dict[str, float]:
    """The rates with a million jobs of other states in the table."""
    many = 100_000 if options.quick else 1_000_000
    jobs = ours.litestack.jobs
    client = ours.Client()
    found: dict[str, float] = {}
    count = 4_000 if options.quick else 20_000
    for name, fill in (
        ("empty", ""),
        ("finished", "'succeeded', 1e10, 1e11"),
        ("scheduled", "'scheduled', NULL, NULL"),
    ):
        if fill:
            connection = jobs.connect()
            connection.execute(
                "INSERT INTO litestack_jobs (state, finished_at, expires_at, queue, priority, task,"
                f" arguments, created_at, run_at) WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL "
                f"SELECT i + 1 FROM n WHERE i < {many}) SELECT {fill}, 'default', 0, 'noop', "
                "'[[1]]', 1.0, 1e10 + i FROM n"
            )
            connection.close()
        rates = [_enqueue_and_drain(ours, client, folder, "noop", count) for _ in range(3)]
        found[f"enqueue_{name}"] = max(rate[0] for rate in rates)
        found[f"drain_{name}"] = max(rate[1] for rate in rates)
        if fill:
            for what in ("enqueue", "drain"):
                share = found[f"{what}_{name}"] / found[f"{what}_empty"] * 100
                _target(f"{what} beside {many:,} {name}, % of empty", share, at_least=80)
        _empty(jobs)
    return found


def _killed(folder: Path, ours: Any) -> dict[str, float]:
    """How long a job of a killed worker waits where another worker lives."""
    times = []
    for _ in range(5):
        _marks(folder).unlink(missing_ok=True)
        with _worker(ours, folder, "--processes", "2"):
            _wait(lambda: len(ours.litestack.jobs.workers()) == 2)
            ours.sleep.enqueue(1)
            _wait_for_marks(folder, 1)
            (busy,) = [w for w in ours.litestack.jobs.workers() if w.running]
            killed = time.time()
            os.kill(busy.pid, signal.SIGKILL)
            times.append(_wait_for_marks(folder, 2)[1][1] - killed)
        _empty(ours.litestack.jobs)
    longest = max(times) * 1e3
    _target("a killed job starts again, ms at most", longest, at_most=100)
    return {"killed_ms": longest}


def _web_writer(options: argparse.Namespace, folder: Path, ours: Any) -> dict[str, float]:
    """The p99 of a writer alone, and beside a saturated worker."""
    seconds = 3.0 if options.quick else 10.0
    jobs, database = ours.litestack.jobs, ours.litestack.db

    def writer() -> float:
        times = []
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            began = time.perf_counter()
            database.session.add(ours.Row(n=1))
            database.session.commit()
            times.append(time.perf_counter() - began)
            time.sleep(0.002)
        return _p50_p99(times)[1]

    alone = writer()
    jobs.enqueue_many(ours.write.call(n) for n in range(int(seconds) * 6_000))
    with _worker(ours, folder):
        _wait(lambda: jobs.counts()["succeeded"] > 10)
        beside = writer()
        assert jobs.counts()["queued"], "the worker was not saturated to the end"
    _empty(jobs)
    _target("p99 of a web writer beside a saturated worker, times alone", beside / alone, at_most=5)
    return {"writer_alone_p99_ms": alone, "writer_beside_p99_ms": beside}


def _empty(jobs: Any) -> None:
    connection = jobs.connect()
    connection.execute("DELETE FROM litestack_jobs")
    connection.close()


def _interleaved(calls: dict[str, Callable[[int], object]], count: int) -> dict[str, float]:
    """Seconds per call, the best of seven rounds of each."""
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(7):
        for name, call in calls.items():
            began = time.perf_counter()
            for n in range(count):
                call(n)
            best[name] = min(best[name], (time.perf_counter() - began) / count)
    return best


# -- the comparison -------------------------------------------------------------------------------


def _compare(figures: dict[str, dict[str, float]]) -> None:
    ours = figures[OURS]
    others = {name: found for name, found in figures.items() if name != OURS}
    if not others:
        return
    print()
    _target("drain, times the best peer", ours["drain"] / _best(others, "drain"), at_least=3)
    if CELERY in others:
        celery = others[CELERY]
        _target("drain, times Celery", ours["drain"] / celery["drain"], at_least=12)
        if "write" in celery:
            _target("ORM writes, times Celery", ours["write"] / celery["write"], at_least=3)
    for key, what in (
        ("pickup_p50", "pick-up p50"),
        ("pickup_p99", "pick-up p99"),
        ("late_p50", "pick-up p50 after idling"),
        ("late_p99", "pick-up p99 after idling"),
    ):
        least = min(found[key] for found in others.values())
        _target(f"{what}, times the best peer's", ours[key] / least, at_most=1)
    _target("idle CPU, %", ours["idle_cpu"], at_most=0.05)


def _best(figures: dict[str, dict[str, float]], key: str) -> float:
    return max(found[key] for found in figures.values())


def _target(
    what: str, value: float, *, at_least: float | None = None, at_most: float | None = None
) -> None:
    reached = (at_least is None or value >= at_least) and (at_most is None or value <= at_most)
    bound = f">= {at_least:g}" if at_least is not None else f"<= {at_most:g}"
    line = f"{'PASS' if reached else 'MISS'}  {what}: {value:.2f} ({bound})"
    print(line, flush=True)
    if not reached:
        _misses.append(line)


def _line(found: dict[str, float]) -> str:
    write = f"{found['write']:>9,.0f}" if "write" in found else f"{'-':>9}"
    return (
        f"{found['enqueue']:>9,.0f}{found['drain']:>9,.0f}{write}{found['pickup_p50']:>13.2f}"
        f"{found['pickup_p99']:>8.2f}{found['late_p50']:>16.2f}{found['late_p99']:>5.1f}"
        f"{found['idle_cpu']:>12.3f}{found['pss']:>8.1f}"
    )


# -- processes ------------------------------------------------------------------------------------


@contextlib.contextmanager
def _worker(module: Any, folder: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    program, *arguments = [*module.COMMAND, *module.OPTIONS, *options]
    with (folder / "worker.log").open("ab") as log:
        process = subprocess.Popen(
            [str(BIN / program), *arguments],
            cwd=TREE,
            env=os.environ | {"PYTHONPATH": str(TREE), "PYTHONWARNINGS": "ignore"},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextlib.contextmanager
def _brokers(folder: Path) -> Iterator[set[str]]:
    """Start what the peers need; yield what there is."""
    found = set()
    with contextlib.ExitStack() as stack:
        if shutil.which("redis-server"):
            os.environ["BENCH_REDIS"] = str(stack.enter_context(_redis(folder)))
            found.add("redis")
        try:
            url = stack.enter_context(_postgres.server(folder / "postgres"))
        except _postgres.NotInstalled as error:
            print(f"NOT RUN on PostgreSQL: {error}")
        else:
            os.environ["BENCH_POSTGRES"] = url
            found.add("postgres")
        yield found


@contextlib.contextmanager
def _redis(folder: Path) -> Iterator[int]:
    """A Redis server that syncs its log once a second: as durable as we are by default."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = int(sock.getsockname()[1])
    options = {"port": port, "bind": "127.0.0.1", "save": "", "appendonly": "yes", "dir": folder}
    arguments = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    process = subprocess.Popen(["redis-server", *arguments], stdout=subprocess.DEVNULL)
    try:
        _wait(lambda: _connects(port))
        yield port
    finally:
        process.terminate()
        process.wait()


def _connects(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def _wait(condition: Callable[[], Any], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("a worker does not get on; see worker.log")
        time.sleep(0.0005)


def _tree(pid: int) -> list[int]:
    """A process and its descendants."""
    found, todo = [], [pid]
    while todo:
        pid = todo.pop()
        found.append(pid)
        with contextlib.suppress(FileNotFoundError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                todo += map(int, (task / "children").read_text().split())
    return found


def _cpu(pid: int) -> float:
    """Seconds of CPU that a worker's processes have used, from the scheduler's own clock."""
    nanoseconds = 0
    for process in _tree(pid):
        for thread in Path(f"/proc/{process}/task").iterdir():
            with contextlib.suppress(FileNotFoundError):
                nanoseconds += int((thread / "schedstat").read_text().split()[0])
    return nanoseconds / 1e9


def _pss(pid: int) -> float:
    """Megabytes of memory of a worker's processes, what they share counted once."""
    total = 0
    for process in _tree(pid):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return total / 1024


def _marks(folder: Path) -> Path:
    return folder / "marks"


def _read_marks(folder: Path) -> list[tuple[int, float]]:
    try:
        lines = _marks(folder).read_text().splitlines()
    except FileNotFoundError:
        return []
    return [(int(n), float(moment)) for n, moment in map(str.split, lines)]


def _wait_for_marks(folder: Path, count: int) -> list[tuple[int, float]]:
    _wait(lambda: len(_read_marks(folder)) >= count)
    return _read_marks(folder)


def _p50_p99(samples: list[float]) -> tuple[float, float]:
    samples = sorted(samples)
    return (
        statistics.median(samples) * 1e3,
        samples[min(len(samples) - 1, int(len(samples) * 0.99))] * 1e3,
    )


if __name__ == "__main__":
    sys.exit(main())

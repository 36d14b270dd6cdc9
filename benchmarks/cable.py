"""Measure the cable beside its peers: ``python -m benchmarks.cable [--quick] [--json FILE]``.

Needs redis-server, and the packages flask-socketio, gevent and redis. Every server is plain
gunicorn on the loopback; the clients send what a browser sends. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import resource
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from .cable_apps import bus
from .cable_apps.swarm import Swarm, masked

ROOT = Path(__file__).parent.parent
SUBSCRIBE = [masked(b'{"type":"subscribe","channel":"posts/7"}')]
SOCKETIO = [masked(b"40"), masked(b'42["subscribe","posts/7"]')]
SOCKETIO_PATH = "/socket.io/?EIO=4&transport=websocket"

GUNICORN = [sys.executable, "-m", "gunicorn", "--workers", "1", "--backlog", "2048"]
LOAD = [sys.executable, "-m", "benchmarks.cable_apps.load"]

OURS = "ours"
SOCK = "flask-sock + Redis"
SOCKETIO_THREADS = "Flask-SocketIO + Redis, gthread"
SOCKETIO_GEVENT = "Flask-SocketIO + Redis, gevent"


@dataclass(frozen=True)
class Target:
    """A figure that must be reached."""

    name: str
    value: float
    limit: float
    at_least: bool = False

    @property
    def passed(self) -> bool:
        return self.value >= self.limit if self.at_least else self.value <= self.limit


@dataclass
class Figures:
    """Everything measured; times in milliseconds, memory in MB."""

    latency: dict[str, tuple[float, float]] = field(default_factory=dict)
    bus_p50: dict[str, float] = field(default_factory=dict)
    bus_rate: dict[str, float] = field(default_factory=dict)
    crowd: dict[str, float] = field(default_factory=dict)
    idle_cpu: float = 0.0


def main() -> int:
    """Run everything; the exit code is 1 if a target was missed."""
    options = _options()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    quick = options.quick
    figures = Figures()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        redis_url = stack.enter_context(_redis(folder))
        if options.only in "latency":
            figures.latency = _latency(folder, redis_url, rounds=1 if quick else 3)
        if options.only in "bus":
            _bus(figures, folder, redis_url, rounds=1 if quick else 3)
        if options.only in "crowd":
            figures.crowd = _crowd(folder, 1000 if quick else 10_000, rounds=3 if quick else 8)
        if options.only in "idle":
            figures.idle_cpu = _idle(folder, 1000, seconds=5 if quick else 60)
    _print(figures)
    if options.json:
        options.json.write_text(json.dumps(asdict(figures), indent=1))
    return _judge(figures)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="short runs: a smoke test, no figures")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--only", default="", help="latency, bus, crowd or idle")
    return parser.parse_args()


# -- servers --------------------------------------------------------------------------------------


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def _redis(folder: Path) -> Iterator[str]:
    port = _free_port()
    server = subprocess.Popen(
        ["redis-server", "--port", str(port), "--save", "", "--dir", str(folder)],
        stdout=subprocess.DEVNULL,
    )
    try:
        _wait_for_port(port)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        server.terminate()
        server.wait()


@dataclass(frozen=True)
class Server:
    """A running gunicorn."""

    pid: int
    port: int

    def get(self, path: str) -> None:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=120) as answer:
            answer.read()

    def publish(self, word: str) -> None:
        url = f"http://127.0.0.1:{self.port}/publish/{word}"
        with urllib.request.urlopen(url, b"", timeout=120) as answer:
            answer.read()

    def processes(self) -> list[int]:
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return [self.pid, *map(int, children)]

    def memory(self) -> float:
        """Memory of all processes in MB; shared pages count in proportion."""
        total = 0
        for pid in self.processes():
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1])
        return total / 1024

    def cpu(self) -> float:
        """Seconds of processor time so far, of all processes."""
        total = 0
        for pid in self.processes():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
        return total / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def _gunicorn(app: str, folder: Path, *options: str, **variables: str) -> Iterator[Server]:
    port = _free_port()
    # A data folder of its own for each server.
    data = tempfile.mkdtemp(dir=folder)
    process = subprocess.Popen(
        [*GUNICORN, "--log-level", "error", "--bind", f"127.0.0.1:{port}", *options, app],
        cwd=ROOT,
        env=os.environ | {"BENCH_DATA": data} | variables,
        start_new_session=True,
    )
    try:
        _wait_for_port(port)
        server = Server(process.pid, port)
        server.get("/up")
        yield server
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_for_port(port: int) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


# -- latency --------------------------------------------------------------------------------------

CLIENTS = 100
RATE = 10.0
SECONDS = 8.0


def _latency(folder: Path, redis_url: str, rounds: int) -> dict[str, tuple[float, float]]:
    """From the publish in a view to each of 100 clients, at 10 messages a second."""
    apps = "benchmarks.cable_apps"
    threads = ["--worker-class", "gthread", "--threads"]
    redis_env = {"BENCH_REDIS": redis_url}
    gevent = ["--worker-class", "gevent", "--worker-connections", "1000"]
    peers = {
        OURS: (f"{apps}.ours:create_app()", [*threads, "4"], {}, "/cable", SUBSCRIBE),
        SOCK: (f"{apps}.sock_redis:app", [*threads, "110"], redis_env, "/cable", []),
        SOCKETIO_THREADS: (
            f"{apps}.socketio_redis:app",
            [*threads, "110"],
            redis_env | {"BENCH_ASYNC_MODE": "threading"},
            SOCKETIO_PATH,
            SOCKETIO,
        ),
        SOCKETIO_GEVENT: (
            f"{apps}.socketio_redis:app",
            gevent,
            redis_env | {"BENCH_ASYNC_MODE": "gevent"},
            SOCKETIO_PATH,
            SOCKETIO,
        ),
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in peers}
    for _ in range(rounds):
        for name, (app, options, variables, path, first) in peers.items():
            with _gunicorn(app, folder, *options, **variables) as server:
                found[name].append(_latency_of(server, path, first))
    return {
        name: (statistics.median(p50 for p50, _ in runs), statistics.median(p99 for _, p99 in runs))
        for name, runs in found.items()
    }


def _latency_of(server: Server, path: str, first: list[bytes]) -> tuple[float, float]:
    swarm = Swarm(server.port, CLIENTS, path=path, first=first, at_once=10)
    swarm.wait_for_each(b"subscribed")
    time.sleep(1)
    publisher = subprocess.Popen(
        [*LOAD, "publish", str(server.port), str(RATE), str(SECONDS)],
        cwd=ROOT,
    )
    count = int(RATE * SECONDS)
    times = swarm.latencies(SECONDS + 20, count)
    publisher.wait()
    swarm.close()
    if any(len(own) != count for own in times):
        raise SystemExit(f"messages were lost: {sorted({len(own) for own in times})} of {count}")
    flat = sorted(1000 * value for own in times for value in own)
    return _percentile(flat, 0.5), _percentile(flat, 0.99)


def _percentile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


# -- the bus --------------------------------------------------------------------------------------


def _bus(figures: Figures, folder: Path, redis_url: str, rounds: int) -> None:
    peers: dict[str, tuple[bus.Open, str]] = {
        OURS: (bus.ours, tempfile.mkdtemp(dir=folder)),
        "Redis pub/sub": (bus.of_redis, redis_url),
    }
    p50: dict[str, list[float]] = {name: [] for name in peers}
    rate: dict[str, list[float]] = {name: [] for name in peers}
    for _ in range(3 * rounds):
        for name, (open_bus, place) in peers.items():
            p50[name].append(1000 * bus.latency(open_bus, place))
    for _ in range(rounds):
        for name, (open_bus, place) in peers.items():
            rate[name].append(bus.rate(open_bus, place))
    figures.bus_p50 = {name: statistics.median(values) for name, values in p50.items()}
    figures.bus_rate = {name: statistics.median(values) for name, values in rate.items()}


# -- a crowd --------------------------------------------------------------------------------------


def _crowd(folder: Path, count: int, rounds: int) -> dict[str, float]:
    """Thousands of sockets on one worker of four threads, idle and busy."""
    found: dict[str, float] = {"sockets": count, "bare loop": _bare(count, rounds)}
    app = "benchmarks.cable_apps.ours:create_app()"
    with _gunicorn(app, folder, "--worker-class", "gthread", "--threads", "4") as server:
        start = time.monotonic()
        swarm = Swarm(server.port, count, path="/cable", first=SUBSCRIBE)
        swarm.wait_for_each(b"subscribed")
        found["connected per second"] = count / (time.monotonic() - start)
        found["memory"] = server.memory()
        swarm.pump(2)
        found["idle"] = _broadcasts(server, swarm, "a", rounds)

        burning = threading.Thread(target=server.get, args=(f"/burn/{2.0 * rounds + 2:.1f}",))
        burning.start()
        swarm.pump(0.5)
        found["beside a busy thread"] = _broadcasts(server, swarm, "b", rounds)
        burning.join()

        load = subprocess.Popen(
            [*LOAD, "saturate", str(server.port), "4"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        swarm.pump(2)
        _tell(load, "begin")
        swarm.pump(2.0 * rounds)
        alone = _report(load)
        found["beside 4 saturated threads"] = _broadcasts(server, swarm, "c", rounds)
        meanwhile = _report(load)
        load.kill()
        load.wait()
        for name, times in (("alone", alone), ("meanwhile", meanwhile)):
            found[f"request p50 {name}"] = 1000 * _percentile(times, 0.5)
            found[f"request p99 {name}"] = 1000 * _percentile(times, 0.99)
        found["memory at the end"] = server.memory()
        swarm.close()
    return found


def _broadcasts(server: Server, swarm: Swarm, prefix: str, rounds: int) -> float:
    """Return the median time from a publish until the last client has it, in milliseconds."""
    times = []
    for number in range(rounds):
        word = f"{prefix}{number}"
        start = time.monotonic()
        publisher = threading.Thread(target=server.publish, args=(word,))
        publisher.start()
        times.append(1000 * (swarm.wait_for_each(f'"{word}"'.encode()) - start))
        publisher.join()
        swarm.pump(2.0 - (time.monotonic() - start))
    return statistics.median(times)


def _bare(count: int, rounds: int) -> float:
    port = _free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.cable_apps.bare", str(port), str(count)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    # Waiting for the port would be taken for a client.
    time.sleep(1)
    swarm = Swarm(port, count, path="/", first=[])
    swarm.wait_for_each(b"subscribed")
    assert process.stdin is not None
    times = []
    for number in range(rounds):
        time.sleep(0.5)
        start = time.monotonic()
        process.stdin.write(f'{{"word":"bare{number}","x":"{"x" * 170}"}}\n')
        process.stdin.flush()
        times.append(1000 * (swarm.wait_for_each(f'"bare{number}"'.encode()) - start))
    swarm.close()
    process.kill()
    process.wait()
    return statistics.median(times)


def _tell(load: subprocess.Popen[str], word: str) -> None:
    assert load.stdin is not None
    load.stdin.write(f"{word}\n")
    load.stdin.flush()


def _report(load: subprocess.Popen[str]) -> list[float]:
    _tell(load, "report")
    assert load.stdout is not None
    times: list[float] = json.loads(load.stdout.readline())
    return sorted(times)


def _idle(folder: Path, count: int, seconds: float) -> float:
    """Return the percentage of one core that open sockets cost which nobody uses."""
    app = "benchmarks.cable_apps.ours:create_app()"
    with _gunicorn(app, folder, "--worker-class", "gthread", "--threads", "4") as server:
        time.sleep(2)
        before = server.cpu()
        time.sleep(seconds / 2)
        nobody = (server.cpu() - before) / (seconds / 2)
        swarm = Swarm(server.port, count, path="/cable", first=SUBSCRIBE)
        swarm.wait_for_each(b"subscribed")
        swarm.pump(5)
        before = server.cpu()
        swarm.pump(seconds)
        used = (server.cpu() - before) / seconds
        swarm.close()
    print(f"idle: gunicorn without sockets {100 * nobody:.2f} %, with them {100 * used:.2f} %")
    return 100 * (used - nobody)


# -- results --------------------------------------------------------------------------------------


def _print(figures: Figures) -> None:
    print(f"{time.strftime('%Y-%m-%d')}  {platform.platform()}  {os.cpu_count()} cores")
    if figures.latency:
        print(f"\n{'100 clients, 10 messages a second':<40}{'p50 ms':>10}{'p99 ms':>10}")
        for name, (p50, p99) in figures.latency.items():
            print(f"  {name:<38}{p50:>10.2f}{p99:>10.2f}")
    if figures.bus_p50:
        print(f"\n{'the bus alone, process to process':<40}{'p50 ms':>10}{'per second':>12}")
        for name, p50 in figures.bus_p50.items():
            print(f"  {name:<38}{p50:>10.3f}{figures.bus_rate[name]:>12,.0f}")
    if figures.crowd:
        print("\na crowd on one worker of four threads (times in ms, memory in MB)")
        for name, value in figures.crowd.items():
            print(f"  {name:<38}{value:>10,.1f}")


def _targets(figures: Figures) -> Iterator[Target]:
    if figures.latency:
        for index, name in enumerate(("p50", "p99")):
            ratio = figures.latency[OURS][index] / figures.latency[SOCK][index]
            yield Target(f"{name} of 100 clients / {SOCK}", ratio, 2 / 3)
    if figures.bus_p50:
        ratio = figures.bus_p50[OURS] / figures.bus_p50["Redis pub/sub"]
        yield Target("bus p50 / Redis pub/sub", ratio, 1)
        yield Target("bus messages per second", figures.bus_rate[OURS], 10_000, at_least=True)
    if crowd := figures.crowd:
        yield Target("memory in MB", max(crowd["memory"], crowd["memory at the end"]), 150)
        rate = crowd["connected per second"]
        yield Target("connected per second", rate, 500, at_least=True)
        for name, limit in (
            ("idle", 3),
            ("beside a busy thread", 6),
            ("beside 4 saturated threads", 6),
        ):
            yield Target(f"broadcast, {name} / bare loop", crowd[name] / crowd["bare loop"], limit)
        ratio = crowd["request p99 meanwhile"] / crowd["request p99 alone"]
        yield Target("request p99 during broadcasts / without", ratio, 2)
    if figures.idle_cpu:
        yield Target("CPU % of 1,000 idle sockets", figures.idle_cpu, 0.5)


def _judge(figures: Figures) -> int:
    """Print what became of the targets and return 1 if one was missed."""
    missed = False
    print("\ntargets")
    for target in _targets(figures):
        missed |= not target.passed
        sign = ">=" if target.at_least else "<="
        verdict = "PASS" if target.passed else "MISS"
        print(f"  {verdict} {target.value:10.3f} {sign} {target.limit:<8.5g} {target.name}")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())

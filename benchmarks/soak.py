"""Have a server at work for half an hour, and mistreat it: ``python -m benchmarks.soak``.

Customers order, jobs ship, sockets listen, backups are made; in the first half processes are killed
and the server is reloaded and restarted at random. In the second half nothing is killed, so that
whatever grows can be seen. The exit code is 1 if anything was lost, repeated, refused or grew.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.cable.client import Client, Refused
from tests.processes.ledger import GUNICORN, Customers, books, create_app, litestack
from tests.servers import TREE, environment, free_port

SOCKETS = 20
CUSTOMERS = 4
#: Seconds between two orders of a customer.
PAUSE = 0.02
#: Seconds between two acts of violence; the server has to be whole again in between.
SPACING = (8.0, 20.0)
SAMPLE = 5.0
PATIENCE = 60.0
#: What may grow from the beginning of the quiet half to its end, as a factor.
GROWTH = 1.1
LOG_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Sample:
    """What the processes of the server take at one moment."""

    pss: float
    descriptors: float
    threads: float
    log: float


class Server:
    """gunicorn with the ledger; killed at the end of the block, if it is still there."""

    process: subprocess.Popen[bytes] | None = None

    def __init__(self, folder: Path) -> None:
        self.data = folder / "data"
        self.port = free_port()
        self._log = (folder / "server.log").open("ab")

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self._log.close()

    def start(self) -> None:
        """Start it, and wait until it is whole."""
        variables = environment(
            PORT=str(self.port),
            LITESTACK_DATA_PATH=str(self.data),
            FLASK_LITESTACK_JOBS_KEEP_SUCCEEDED="30",
        )
        self.process = subprocess.Popen(
            [*GUNICORN, "--access-logfile", os.devnull],
            cwd=TREE,
            env=variables,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        wait_until(self.is_whole, "the server is whole")

    def children(self) -> list[int]:
        pid = self.process.pid
        return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def is_whole(self) -> bool:
        """Whether one process serves and one runs jobs."""
        jobs = job_workers()
        children = self.children()
        return len(children) == 2 and len(jobs) == 1 and jobs[0] in children

    def kill_web(self) -> None:
        os.kill(next(pid for pid in self.children() if pid not in job_workers()), signal.SIGKILL)

    def kill_jobs(self) -> None:
        os.kill(job_workers()[0], signal.SIGKILL)

    def kill_master(self) -> None:
        workers = self.children()
        self.process.kill()
        self.process.wait()
        wait_until(lambda: not any(Path(f"/proc/{p}").exists() for p in workers), "all have ended")
        self.start()

    def reload(self) -> None:
        before = set(self.children())
        self.process.send_signal(signal.SIGHUP)
        wait_until(lambda: before.isdisjoint(self.children()), "the old workers have ended")

    def restart(self) -> None:
        self.stop()
        self.start()

    def stop(self) -> None:
        self.process.terminate()
        code = self.process.wait(PATIENCE)
        assert code == 0, f"the server ended with exit code {code}"

    def back_up(self) -> None:
        command = [sys.executable, "-m", "flask", "--app", "tests.processes.ledger:create_app"]
        command += ["litestack", "backup", "--keep", "2"]
        variables = environment(LITESTACK_DATA_PATH=str(self.data))
        subprocess.run(
            command, cwd=TREE, env=variables, check=True, capture_output=True, timeout=PATIENCE
        )

    def sample(self) -> Sample:
        """Add up what its processes take, and the size of the write-ahead log."""
        pids = [self.process.pid, *self.children()]
        return Sample(
            sum(map(pss, pids)),
            sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids),
            sum(len(os.listdir(f"/proc/{pid}/task")) for pid in pids),
            Path(f"{self.data}/data.sqlite3-wal").stat().st_size,
        )


class Listener:
    """A client that notes what it hears, and comes back when it is sent away."""

    def __init__(self, port: int, stop: threading.Event) -> None:
        self._port = port
        self._stop = stop
        self.heard = bytearray()
        self.last = 0
        self.returns = -1
        self.problem = ""
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        since: int | None = None
        while not self._stop.is_set() and not self.problem:
            try:
                client = Client(self._port, timeout=1.0)
                confirmed = client.subscribe("orders", since)
                self.returns += 1
                since = confirmed["id"] if since is None else since
                for message in self._messages(client):
                    if message["type"] == "message":
                        self._note(message["data"])
                        since = message["id"]
                    else:
                        self.problem = f"heard {message}"
            except (OSError, Refused, AssertionError):
                time.sleep(random.uniform(0.05, 0.3))  # not there, or ending

    def _messages(self, client: Client) -> Iterator[dict[str, object]]:
        while not self._stop.is_set() and not self.problem:
            try:
                yield client.read()
            except TimeoutError:
                continue

    def _note(self, n: object) -> None:
        assert isinstance(n, int)
        if n >= len(self.heard):
            self.heard.extend(bytes(2 * n + 1 - len(self.heard)))
        self.heard[n] += 1
        self.last = max(self.last, n)


def main() -> int:
    """Run it; the exit code is 1 if something is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--dir", help="where the files go (default: a temporary folder)")
    options = parser.parse_args()
    print(f"{options.minutes:g} minutes, --seed {options.seed}")
    with tempfile.TemporaryDirectory(dir=options.dir) as name:
        app = create_app(Path(name) / "data")
        with app.app_context():
            problems = soak(Path(name), options.minutes * 60, random.Random(options.seed))
            litestack.db.close_session()
            litestack.db.engine.dispose()
    for problem in problems:
        print(f"  WRONG {problem}")
    return int(bool(problems))


def soak(folder: Path, seconds: float, chance: random.Random) -> list[str]:
    """Run the server for so long; return what is wrong."""
    stop = threading.Event()
    listeners: list[Listener] = []
    with Server(folder) as server:
        try:
            server.start()
            listeners += [Listener(server.port, stop) for _ in range(SOCKETS)]
            wait_until(lambda: all(one.returns >= 0 for one in listeners), "all listen")
            with Customers(server.port, CUSTOMERS, pause=PAUSE) as customers:
                mistreat(server, seconds / 2, chance)
                samples = list(quiet(server, time.monotonic() + seconds / 2))
            settled = settle(customers, listeners)
            end(listeners, stop)
            server.stop()
        except (AssertionError, subprocess.SubprocessError) as error:
            return [str(error)]
        finally:
            end(listeners, stop)
    return settled + compare(customers, listeners) + growth(samples)


def end(listeners: list[Listener], stop: threading.Event) -> None:
    """Have them end; safe to call twice."""
    stop.set()
    for listener in listeners:
        listener.thread.join()


def mistreat(server: Server, seconds: float, chance: random.Random) -> None:
    """Kill, reload, restart and back up at random for so long."""
    acts = [server.kill_web, server.kill_jobs, server.kill_master, server.reload, server.restart]
    done: dict[str, int] = {}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(chance.uniform(*SPACING))
        act: Callable[[], None] = chance.choice([*acts, server.back_up])
        done[act.__name__] = done.get(act.__name__, 0) + 1
        act()
        wait_until(server.is_whole, f"the server is whole after {act.__name__}")
    print(", ".join(f"{name} {count}" for name, count in sorted(done.items())), flush=True)


def quiet(server: Server, end: float) -> Iterator[Sample]:
    """Look at the server until the end, with a backup now and then; no process is killed."""
    for number in itertools.count(1):
        if time.monotonic() >= end:
            return
        time.sleep(SAMPLE)
        if number % 12 == 0:
            server.back_up()
        yield server.sample()


def settle(customers: Customers, listeners: list[Listener]) -> list[str]:
    """Wait until all is shipped and heard."""
    last = max(customers.taken, default=0)
    try:
        wait_until(lambda: litestack.jobs.counts()["queued"] == 0, "all is shipped")
        wait_until(lambda: litestack.jobs.counts()["running"] == 0, "all is shipped")
        wait_until(lambda: all(listener.last >= last for listener in listeners), "all is heard")
    except AssertionError as error:
        return [str(error)]
    return []


def compare(customers: Customers, listeners: list[Listener]) -> list[str]:
    """Compare the books with what was acknowledged and heard."""
    ordered, shipped = books()
    taken = set(customers.taken)
    returns = sum(listener.returns for listener in listeners)
    print(
        f"{len(taken):,} orders acknowledged, {len(ordered):,} stored, {len(shipped):,} shipped; "
        f"{customers.unanswered:,} connections refused or broken; "
        f"sockets came back {returns:,} times"
    )
    problems = [f"a page of an error: {text}" for text in customers.refused[:5]]
    if missing := taken.difference(ordered):
        problems.append(f"{len(missing)} acknowledged orders are not stored")
    if shipped != ordered:
        problems.append("not each order was shipped once")
    if failed := litestack.jobs.counts()["failed"]:
        problems.append(f"{failed} jobs have failed")
    for number, listener in enumerate(listeners):
        if listener.problem:
            problems.append(f"socket {number}: {listener.problem}")
        wrong = [n for n in taken if n >= len(listener.heard) or listener.heard[n] != 1]
        if wrong:
            problems.append(f"socket {number} heard {len(wrong)} orders not once: {wrong[:5]}")
    return problems


def growth(samples: list[Sample]) -> list[str]:
    """Compare the beginning of the quiet half with its end."""
    count = max(1, len(samples) // 5)
    problems = []
    print(f"{'quiet half':<20}{'begin':>10}{'end':>10}{'most':>10}")
    for name, unit in (("pss", 2**20), ("descriptors", 1), ("threads", 1), ("log", 2**20)):
        values = [getattr(sample, name) / unit for sample in samples]
        begin, end = statistics.median(values[:count]), statistics.median(values[-count:])
        title = f"{name} MiB" if unit > 1 else name
        print(f"{title:<20}{begin:>10.1f}{end:>10.1f}{max(values):>10.1f}")
        if name == "log":
            if max(values) * unit > LOG_BYTES:
                problems.append("the write-ahead log has grown")
        elif end > begin * GROWTH:
            problems.append(f"{name} grew from {begin:.1f} to {end:.1f}")
    return problems


def job_workers() -> list[int]:
    return [worker.pid for worker in litestack.jobs.workers()]


def pss(pid: int) -> float:
    """The memory of a process in bytes, what is shared counted in parts."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return float(line.split()[1]) * 1024
    raise RuntimeError("smaps_rollup has no Pss")


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Wait for a condition, for PATIENCE seconds at most."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"not within {PATIENCE:.0f} s: {what}"
        time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(main())

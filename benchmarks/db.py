"""Measure the database beside its peers: ``python -m benchmarks.db [--quick] [--json FILE]``.

Everything runs in one go and interleaved: each round runs every workload on every peer, and the
figures are the medians of the rounds. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import multiprocessing
import os
import platform
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from . import _measure, _peers, _postgres, _requests, _workloads
from ._measure import Result
from ._peers import Peer
from ._workloads import Workload

ROUNDS = 3

#: Each run of one workload on one peer takes this long.
SECONDS = 1.0

#: Where small differences matter, the peers take turns this often in a round.
SLICES = 4

STOCK, RECIPE, OURS, FULL, POSTGRES = (
    "stock SQLAlchemy",
    "usual WAL recipe",
    "ours, NORMAL",
    "ours, FULL",
    "PostgreSQL",
)


@dataclass(frozen=True)
class Cell:
    """One workload with its number of workers.

    A run takes ``longer`` times the usual, where a maximum is looked for, and is done in
    ``slices``, the peers taking turns, where small differences matter.
    """

    name: str
    workload: Workload
    processes: int = 1
    threads: int = 1
    longer: float = 1.0
    slices: int = 1


READ = Cell("point read, 1 process", _workloads.point_read, slices=SLICES)
UPDATE = Cell("update, 1 process", _workloads.read_modify_write, slices=SLICES)
UPDATE_8 = Cell("update, 8 processes", _workloads.read_modify_write, processes=8, longer=2)
UPDATE_THREADS = Cell("update, 8 threads", _workloads.read_modify_write, threads=8, longer=2)
MIXED = [
    Cell("80/20, 1 process", _workloads.mixed),
    *(Cell(f"80/20, {n} processes", _workloads.mixed, processes=n) for n in (2, 4, 8)),
    Cell("80/20, 8 threads", _workloads.mixed, threads=8),
]
SATURATE = Cell("16 saturating processes, 2 ms each", _workloads.saturate, processes=16, longer=3)
READS = [
    *(Cell(f"point read, {n} processes", _workloads.point_read, processes=n) for n in (2, 4, 8)),
    Cell("point read, 8 threads", _workloads.point_read, threads=8),
]
UPDATES = [
    Cell(f"update, {n} processes", _workloads.read_modify_write, processes=n) for n in (2, 4)
]
CELLS = [READ, *READS, UPDATE, *UPDATES, UPDATE_8, UPDATE_THREADS, *MIXED, SATURATE]
REQUEST = "a request with one SELECT"

Table = dict[str, dict[str, Result]]


@dataclass(frozen=True)
class Target:
    """A ratio of two peers' figures of one workload, and how far it must, or may, go."""

    name: str
    cell: str
    figure: str
    ours: str
    theirs: str
    limit: float
    at_least: bool = True

    def ratio(self, row: dict[str, Result]) -> float:
        """Compute the ratio; a peer that was not run is a KeyError."""
        return float(getattr(row[self.ours], self.figure) / getattr(row[self.theirs], self.figure))

    def passed(self, ratio: float) -> bool:
        """Tell whether the target is reached."""
        return ratio >= self.limit if self.at_least else ratio <= self.limit


TARGETS = [
    Target("reads / stock SQLAlchemy", READ.name, "rate", OURS, STOCK, 1),
    Target("updates, 1 process / PostgreSQL", UPDATE.name, "rate", OURS, POSTGRES, 3),
    Target("the same at equal durability", UPDATE.name, "rate", FULL, POSTGRES, 1.5),
    Target("updates, 8 processes / PostgreSQL", UPDATE_8.name, "rate", OURS, POSTGRES, 1),
    Target("the same at equal durability", UPDATE_8.name, "rate", FULL, POSTGRES, 1),
    Target("p99 of 8 updating processes", UPDATE_8.name, "p99", OURS, POSTGRES, 1, False),
    Target("max of 16 saturating / stock", SATURATE.name, "max", OURS, STOCK, 0.2, False),
    Target("the same, stretch", SATURATE.name, "max", OURS, STOCK, 0.05, False),
    Target("max of 8 threads / stock", UPDATE_THREADS.name, "max", OURS, STOCK, 0.2, False),
    Target(
        "request with a SELECT / bare session", REQUEST, "p50", "ours", "bare session", 1.5, False
    ),
]


def main() -> int:
    """Run everything; the exit code is 1 if a target was missed."""
    options = _options()
    rounds, seconds = (1, 0.3) if options.quick else (options.rounds, SECONDS)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=options.dir)))
        folder.chmod(0o755)  # the server's user walks through it
        peers = [
            _peers.stock(folder),
            _peers.recipe(folder),
            _peers.ours(folder, "NORMAL"),
            _peers.ours(folder, "FULL"),
        ]
        try:
            url = stack.enter_context(_postgres.server(folder / "postgres"))
        except _postgres.NotInstalled as missing:
            print(f"NOT RUN: PostgreSQL ({missing})")
        else:
            peers += [_peers.postgres(url, "on"), _peers.postgres(url, "off")]
        for peer in peers:
            if peer.name != _peers.ASYNCHRONOUS:  # the same tables
                stack.enter_context(_created(peer))
        peers.append(_peers.memory())
        table = _table(peers, folder, rounds, seconds, options.only)
    _print(table)
    if options.json:
        data = {cell: {n: asdict(r) for n, r in row.items()} for cell, row in table.items()}
        options.json.write_text(json.dumps(data, indent=1))
    return _judge(table)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="short runs: a smoke test, no figures")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="default: %(default)s")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--dir", help="folder for the databases (default: the temporary one)")
    parser.add_argument("--only", default="", help="only the workloads whose name contains this")
    return parser.parse_args()


@contextlib.contextmanager
def _created(peer: Peer) -> Iterator[None]:
    """Make a peer's tables in a process that goes on to write once a second.

    Like a server's other processes it keeps the database open, and up to date on the disk. Without
    it each short run would begin with a new write-ahead log, and a log that grows is dearer to
    sync than one that is used again.
    """
    context = multiprocessing.get_context("fork")  # this process must have no database open
    ours, theirs = context.Pipe()
    process = context.Process(target=_create, args=(peer, theirs))
    process.start()
    theirs.close()
    try:
        ours.recv()
    except EOFError:
        raise SystemExit(f"the tables of {peer.name} could not be made") from None
    yield
    ours.send("end")
    process.join()


def _create(peer: Peer, pipe: Connection) -> None:
    engine = peer.engine()
    _workloads.create(engine)
    write = _workloads.Retries()(_workloads.read_modify_write(engine))
    pipe.send("ready")
    while not pipe.poll(1.0):
        write()


def _table(peers: Sequence[Peer], folder: Path, rounds: int, seconds: float, only: str) -> Table:
    results: dict[str, dict[str, list[Result]]] = defaultdict(lambda: defaultdict(list))
    for number in range(rounds):
        turn = number % len(peers)  # no peer is always the first
        for cell in CELLS:
            if only not in cell.name:
                continue
            for peer in [*peers[turn:], *peers[:turn]] * cell.slices:
                if peer.in_memory and cell.processes * cell.threads > 1:
                    continue
                result = _measure.run(
                    functools.partial(_workloads.prepare, peer, cell.workload),
                    processes=cell.processes,
                    threads=cell.threads,
                    seconds=seconds * cell.longer / cell.slices,
                )
                results[cell.name][peer.name].append(result)
        if only in REQUEST:
            for kind in [*_requests.KINDS] * SLICES:
                result = _measure.run(
                    lambda _, kind=kind: _requests.prepare(kind, folder), seconds=seconds / SLICES
                )
                results[REQUEST][kind].append(result)
        print(f"round {number + 1} of {rounds} done", file=sys.stderr)
    return {
        cell: {name: _measure.median(runs) for name, runs in row.items()}
        for cell, row in results.items()
    }


def _print(table: Table) -> None:
    print(f"{time.strftime('%Y-%m-%d')}  {platform.platform()}  {os.cpu_count()} cores")
    for cell, row in table.items():
        _measure.print_rows(cell, row)


def _judge(table: Table) -> int:
    """Print what became of the targets and return 1 if one was missed."""
    missed = False
    print("\ntargets")
    for target in TARGETS:
        try:
            ratio = target.ratio(table[target.cell])
        except KeyError:
            print(f"  NOT RUN               {target.name}")
            continue
        passed = target.passed(ratio)
        missed |= not passed
        sign = ">=" if target.at_least else "<="
        verdict = "PASS" if passed else "MISS"
        print(f"  {verdict} {ratio:7.3f} {sign} {target.limit:<5.3g} {target.name}")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())

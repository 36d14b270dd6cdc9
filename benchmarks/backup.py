"""Measure what a backup costs those who write meanwhile: ``python -m benchmarks.backup [--quick]``.

A process updates rows of a large file without a pause, first alone, then while another process
copies the file. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path

from flask import Flask
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from flask_litestack import Litestack
from flask_litestack.sqlite import driver

from . import _measure
from ._measure import Result

#: The most that a writer's p99 may grow, as a factor.
TARGET = 5.0
ROUNDS = 5
MEGABYTES = 500
ROW_BYTES = 4000
ALONE = "nobody copies"
SECONDS_ALONE = 3.0

CONTEXT = multiprocessing.get_context("fork")


class Model(DeclarativeBase):
    """The base of the one table."""


class Item(Model):
    """A row of 4 kB, so that a backup copies most pages for one row each."""

    __tablename__ = "item"
    id: Mapped[int] = mapped_column(primary_key=True)
    views: Mapped[int] = mapped_column(default=0)
    text: Mapped[str]


def main() -> int:
    """Run everything; the exit code is 1 if the target was missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one round with 50 MB: a smoke test")
    parser.add_argument("--dir", help="where the files go (default: a temporary folder)")
    options = parser.parse_args()
    rounds = 1 if options.quick else ROUNDS
    size = (50 if options.quick else MEGABYTES) * 10**6
    results: dict[str, list[Result]] = defaultdict(list)
    seconds: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory(dir=options.dir) as name:
        folder = Path(name)
        in_process(fill, folder, size)
        for number in range(rounds):
            for peer, copy in PEERS.items():
                result, took = measure(folder, copy)
                results[peer].append(result)
                seconds[peer].append(took)
            print(f"round {number + 1} of {rounds} done", flush=True)
    return report(results, seconds, size)


def open_app(folder: Path) -> tuple[Flask, Litestack]:
    """Make the app in this process."""
    litestack = Litestack(metadata=Model.metadata)
    app = Flask("backup")
    app.config["LITESTACK_DATA_PATH"] = folder / "data"
    litestack.init_app(app)
    return app, litestack


def fill(folder: Path, size: int) -> None:
    """Make a file of so many bytes, of text that does not repeat."""
    app, litestack = open_app(folder)
    with app.app_context():
        litestack.db.create_all()
        numbers = random.Random(1)
        for _ in range(size // ROW_BYTES // 1000):
            rows = [{"text": numbers.randbytes(ROW_BYTES // 2).hex()} for _ in range(1000)]
            with litestack.db.write() as session:
                session.execute(Item.__table__.insert(), rows)


def measure(folder: Path, copy: Callable[[Path], object] | None) -> tuple[Result, float]:
    """Time a writer while a process copies the file; return also the seconds of the copy."""
    ours, theirs = CONTEXT.Pipe()
    writer = CONTEXT.Process(target=write, args=(theirs, folder))
    writer.start()
    ours.recv()
    begin = time.monotonic()
    if copy is None:
        time.sleep(SECONDS_ALONE)
    else:
        in_process(copy, folder)
    took = time.monotonic() - begin
    ours.send("stop")
    times: list[float] = ours.recv()
    writer.join()
    return _measure.summary(times, took), took


def write(pipe: Connection, folder: Path) -> None:
    """Update one row after the other until told to stop; send how long each took."""
    app, litestack = open_app(folder)
    times: list[float] = []
    with app.app_context():
        session = litestack.db.session
        (last,) = litestack.db.connect().execute("SELECT max(id) FROM item").fetchone()
        choose = random.Random(2)

        def update() -> None:
            session.get_one(Item, choose.randint(1, last)).views += 1
            session.commit()
            session.expunge_all()

        for _ in range(_measure.WARM_UP):
            update()
        pipe.send("ready")
        while not pipe.poll():
            begin = time.perf_counter()
            update()
            times.append(time.perf_counter() - begin)
    pipe.send(times)


def our_backup(folder: Path) -> None:
    """Copy as ``flask litestack backup`` does: checked, with checksums, synced."""
    app, litestack = open_app(folder)
    with app.app_context():
        litestack.backup(folder / "backups", keep=1)


def vacuum_into(folder: Path) -> None:
    """Copy as many do by hand: not checked, not synced."""
    target = folder / "vacuumed.sqlite3"
    target.unlink(missing_ok=True)
    with closing(driver.module.connect(folder / "data" / "data.sqlite3")) as connection:
        connection.execute("VACUUM INTO ?", (str(target),))


def backup_api(folder: Path) -> None:
    """Copy by sqlite3.Connection.backup in one step: not checked, not synced."""
    target = folder / "copied.sqlite3"
    target.unlink(missing_ok=True)
    with (
        closing(driver.module.connect(folder / "data" / "data.sqlite3")) as connection,
        closing(driver.module.connect(target)) as copy,
    ):
        connection.backup(copy)


def in_process(function: Callable[..., object], *arguments: object) -> None:
    """Run a function in a process of its own: this one opens no database, and forks."""
    process = CONTEXT.Process(target=function, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"{function.__name__} ended with exit code {process.exitcode}")


PEERS: dict[str, Callable[[Path], object] | None] = {
    ALONE: None,
    "ours": our_backup,
    "VACUUM INTO": vacuum_into,
    "Connection.backup": backup_api,
}


def report(results: dict[str, list[Result]], seconds: dict[str, list[float]], size: int) -> int:
    """Print the medians; return 1 if the target was missed."""
    row = {peer: _measure.median(runs) for peer, runs in results.items()}
    _measure.print_rows(f"a writer beside a copy of {size // 10**6} MB", row)
    print("\nseconds for the copy")
    for peer, values in seconds.items():
        if peer != ALONE:
            print(f"  {peer:<42}{statistics.median(values):>9.1f}")
    alone = row[ALONE].p99
    print("\ntargets")
    ratio = row["ours"].p99 / alone
    verdict = "PASS" if ratio <= TARGET else "MISS"
    print(
        f"  {verdict} {ratio:7.3f} <= {TARGET:<5.3g} p99 of a writer during a backup / without one"
    )
    return int(ratio > TARGET)


if __name__ == "__main__":
    sys.exit(main())

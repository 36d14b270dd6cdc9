"""``flask litestack worker``."""

from __future__ import annotations

import logging
import signal
import sys
import time

import click
from flask import Flask

from ..extension import Litestack
from ..jobs.process import become_worker, leave, run_worker
from ..jobs.supervisor import Supervisor
from ..jobs.tally import Progress
from ..jobs.worker import Worker
from ..perapp import current_flask
from ._app import with_litestack


@click.command
@click.option("--queues", metavar="A,B,*", help="The queues, the most urgent first. *: all others.")
@click.option("--threads", type=click.IntRange(1), help="Jobs that run at once in each process.")
@click.option("--processes", type=click.IntRange(1), default=1, show_default=True)
@click.option("--drain", is_flag=True, help="End when no job is ready; exit code 1 if one failed.")
@with_litestack
def command(
    litestack: Litestack, queues: str | None, threads: int | None, processes: int, drain: bool
) -> None:
    """Run jobs until SIGTERM.

    A worker process that dies is replaced; its jobs run again at once. On SIGTERM running jobs
    may end within LITESTACK_JOBS_GRACE seconds, then they are put back; a second SIGTERM is
    quicker.
    """
    app = current_flask()
    settings = litestack.settings
    names = settings.jobs_queues if queues is None else tuple(queues.split(","))
    count = threads or settings.jobs_threads
    if not logging.getLogger().handlers:
        logging.basicConfig(
            level=logging.INFO, format="%(asctime)s %(levelname)s %(process)d %(message)s"
        )
    if drain and processes == 1:
        sys.exit(_drain(app, litestack, names, count))
    supervisor = Supervisor(
        lambda has_parent: run_worker(
            app,
            litestack.jobs,
            queues=names,
            threads=count,
            has_parent=has_parent,
            drain=drain,
        ),
        processes,
        drain=drain,
    )
    sys.exit(supervisor.run())


def _drain(app: Flask, litestack: Litestack, queues: tuple[str, ...], threads: int) -> int:
    bar = _Bar(litestack)
    worker = Worker(
        app, litestack.jobs, queues=queues, threads=threads, drain=True, tick=bar.update
    )
    become_worker()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: worker.stop())
    worker.run()
    bar.end(worker.progress)
    code = 1 if worker.progress.failed else 0
    if worker.has_stuck_jobs:
        leave(code)
    return code


class _Bar:
    """A progress bar with rate and time left, on a terminal."""

    def __init__(self, litestack: Litestack) -> None:
        self._litestack = litestack
        self._is_shown = sys.stderr.isatty()
        self._began = time.monotonic()
        self._next = 0.0
        self._next_count = 0.0
        self._total = 0

    def update(self, progress: Progress) -> None:
        now = time.monotonic()
        if not self._is_shown or now < self._next:
            return
        self._next = now + 0.2
        done = progress.succeeded + progress.failed
        if now >= self._next_count:  # seldom, because it reads all jobs that are kept
            counts = self._litestack.jobs.counts()
            self._total = done + counts["queued"] + counts["running"]
            self._next_count = now + 2.0
        left = max(0, self._total - done)
        rate = done / max(now - self._began, 1e-6)
        share = done / max(done + left, 1)
        bar = "#" * int(share * 30)
        eta = f"{left / rate:.0f} s left" if rate else ""
        click.echo(
            f"\r[{bar:<30}] {done}/{done + left}  {rate:.0f}/s  {eta:<12}", nl=False, err=True
        )

    def end(self, progress: Progress) -> None:
        seconds = time.monotonic() - self._began
        if self._is_shown:
            click.echo("\r\x1b[K", nl=False, err=True)
        click.echo(
            f"{progress.succeeded} jobs succeeded, {progress.failed} failed, in {seconds:.1f} s.",
            err=True,
        )

"""A worker as the whole of a process."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence

from flask import Flask

from .queue import JobQueue
from .worker import Progress, Worker


def run_worker(
    app: Flask,
    jobs: JobQueue,
    *,
    queues: Sequence[str],
    threads: int,
    has_parent: Callable[[], bool] | None = None,
) -> int:
    """Run a worker in this process until SIGTERM; return the exit code.

    :param has_parent: tells whether the process that would replace this one is still there. None:
        there is no such process.
    """

    def tick(progress: Progress) -> None:
        if has_parent is not None and not has_parent():
            worker.stop()

    quicken()
    worker = Worker(
        app, jobs, queues=queues, threads=threads, supervised=has_parent is not None, tick=tick
    )
    signal.signal(signal.SIGTERM, lambda *_: worker.stop())
    code = worker.run()
    if worker.has_stuck_jobs:
        leave(code)
    return code


def quicken() -> None:
    """Have a busy thread give the interpreter to another sooner than after Python's 5 ms.

    The thread that claims jobs needs it for moments only, and everything waits for it.
    """
    sys.setswitchinterval(0.001)


def leave(code: int) -> None:
    """End the process although threads still run: their jobs have been put back.

    A normal exit could hang, or crash, on what such a thread holds.
    """
    with contextlib.suppress(Exception):
        atexit._run_exitfuncs()
    logging.shutdown()
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)

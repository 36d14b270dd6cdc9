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
from .worker import EXIT_JOBS_FAILED, Progress, Worker


def run_worker(
    app: Flask,
    jobs: JobQueue,
    *,
    queues: Sequence[str],
    threads: int,
    has_parent: Callable[[], bool],
    drain: bool = False,
) -> int:
    """Run a worker in this process until SIGTERM; return the exit code.

    :param has_parent: tells whether the process that would replace this one is still there.
    :param drain: end when no job is ready; the exit code says whether a job has failed.
    """
    is_orphan = False

    def tick(progress: Progress) -> None:
        nonlocal is_orphan
        if not is_orphan and not has_parent():
            is_orphan = True
            worker.stop()

    quicken()
    worker = Worker(
        app, jobs, queues=queues, threads=threads, drain=drain, supervised=True, tick=tick
    )
    handle_stop(worker, signal.SIGTERM)
    code = worker.run()
    if drain and code == 0 and worker.progress.failed:
        code = EXIT_JOBS_FAILED
    if worker.has_stuck_jobs:
        leave(code)
    return code


def quicken() -> None:
    """Have a busy thread give the interpreter to another sooner than after Python's 5 ms.

    The thread that claims jobs needs it for moments only, and everything waits for it.
    """
    sys.setswitchinterval(0.001)


def handle_stop(worker: Worker, *numbers: int) -> None:
    """Have signals stop a worker of this process."""
    pid = os.getpid()

    def stop(number: int, frame: object) -> None:
        if not is_of_another(pid, number):
            worker.stop()

    for number in numbers:
        signal.signal(number, stop)


def is_of_another(pid: int, number: int) -> bool:
    """Tell whether a signal handler of process ``pid`` runs in another one, which it then ends.

    A process that a job has forked inherits the handlers of its worker, which do not end it.
    """
    if os.getpid() == pid:
        return False
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    return True


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

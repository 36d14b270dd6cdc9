"""A worker as the whole of a process."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence

from flask import Flask

from .queue import JobQueue
from .tally import Progress
from .worker import EXIT_JOBS_FAILED, Worker


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

    become_worker()
    worker = Worker(
        app, jobs, queues=queues, threads=threads, drain=drain, supervised=True, tick=tick
    )
    signal.signal(signal.SIGTERM, lambda *_: worker.stop())
    code = worker.run()
    if drain and code == 0 and worker.progress.failed:
        code = EXIT_JOBS_FAILED
    if worker.has_stuck_jobs:
        leave(code)
    return code


def become_worker() -> None:
    """Make this process one that runs jobs, for as long as it lives.

    A busy thread then gives the interpreter to another sooner than after Python's 5 ms: the one
    that claims jobs needs it for moments only, and everything waits for it. And signals end what
    a job forks, which inherits handlers that would only tell a copy of the worker to stop.
    """
    global _is_worker
    _is_worker = True
    sys.setswitchinterval(0.001)


_is_worker = False
_held = threading.local()
_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGQUIT}


def _before_fork() -> None:
    # Python forgets, in the child, a signal that comes before it is ready for any.
    if _is_worker:
        _held.mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)


def _after_fork_in_parent() -> None:
    if _is_worker:
        signal.pthread_sigmask(signal.SIG_SETMASK, _held.mask)


def _after_fork_in_child() -> None:
    global _is_worker
    if _is_worker:
        _is_worker = False
        for number in (signal.SIGTERM, signal.SIGQUIT):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, _held.mask)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )


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

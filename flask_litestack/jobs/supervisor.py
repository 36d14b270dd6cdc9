"""Keeps a number of worker processes running."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator

from ..errors import LitestackError
from .process import leave
from .worker import EXIT_JOBS_FAILED, EXIT_REPLACE

log = logging.getLogger("flask_litestack.jobs")

#: A child that lived for less than this, in seconds, waits before it starts the next time.
SHORT_LIFE = 0.5
LONGEST_DELAY = 10.0

#: The exit code of a child that would fail again each time; EX_CONFIG of sysexits.h.
EXIT_HOPELESS = 78

#: A worker process: given a function that tells whether its parent is still there, it runs jobs
#: until SIGTERM and returns its exit code.
Start = Callable[[Callable[[], bool]], int]


class Supervisor:
    """Forks worker processes, and forks another one whenever one dies.

    This process has no threads and opens no database: it can be forked at any time.

    :param start: runs in each child.
    :param drain: a child that ends because there are no more jobs is not replaced; the exit code
        is 1 if jobs have failed.
    """

    def __init__(self, start: Start, processes: int, *, drain: bool = False) -> None:
        self._start = start
        self._processes = processes
        self._drain = drain
        self._children: dict[int, float] = {}
        self._crashes = 0
        self._stopping = False

    def run(self) -> int:
        """Run until SIGTERM or SIGINT, which are passed on; return the exit code."""
        with _handling(self._stop):
            for _ in range(self._processes):
                self._fork(0.0)
            code = 0
            while self._children:
                pid, status = os.waitpid(-1, 0)
                born = self._children.pop(pid, None)
                if born is not None:
                    code = max(code, self._after(pid, os.waitstatus_to_exitcode(status), born))
            return code

    def _after(self, pid: int, code: int, born: float) -> int:
        """Replace a child that has ended, unless that was wanted; return our exit code so far."""
        if code == EXIT_HOPELESS:
            self._stop()
            return 1
        if self._stopping:
            return 0
        if self._drain and code in (0, EXIT_JOBS_FAILED):
            return int(code == EXIT_JOBS_FAILED)
        if code not in (0, EXIT_REPLACE):
            how = f"exited with {code}" if code > 0 else f"was killed by signal {-code}"
            log.error("worker process %d %s; starting another", pid, how)
        if time.monotonic() - born < SHORT_LIFE:
            self._crashes += 1
        else:
            self._crashes = 0
        self._fork(0.0 if self._crashes <= 3 else min(LONGEST_DELAY, 2.0 ** (self._crashes - 3)))
        return 0

    def _fork(self, delay: float) -> None:
        parent = os.getpid()
        pid = os.fork()
        if pid:
            self._children[pid] = time.monotonic() + delay
            if self._stopping:  # the signal came between the two
                _send(pid)
            return
        code = 1
        try:
            code = self._child(parent, delay)
        except LitestackError as error:
            print(f"Error: {error}", file=sys.stderr)
            code = EXIT_HOPELESS
        except BaseException:
            log.exception("the worker process fails")
        finally:
            leave(code)

    def _child(self, parent: int, delay: float) -> int:
        # The terminal sends Ctrl-C to all of us; the parent passes it on, once.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(delay)
        return self._start(lambda: os.getppid() == parent)

    def _stop(self) -> None:
        self._stopping = True
        for pid in list(self._children):
            _send(pid)


def _send(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)


@contextlib.contextmanager
def _handling(stop: Callable[[], None]) -> Iterator[None]:
    before = {}
    for number in (signal.SIGTERM, signal.SIGINT):
        before[number] = signal.signal(number, lambda *_: stop())
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

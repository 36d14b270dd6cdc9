"""The jobs that wait for a thread of this process, and the threads that wait for a job.

Python runs one thread at a time. Several threads at short jobs that mostly compute, or that write
to one database, do not get more done than one: they only hand the interpreter and the write lock
to and fro, which costs a third of the rate (``benchmarks/jobs.py``, jobs with one ORM write). So
such jobs are run by one thread, one after the other, and the next thread is called as soon as one
of them takes long. Jobs that wait for something else get all threads.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Iterable

from .batch import BatchSize
from .claims import Claim

#: A thread that has been at its job for so many seconds does not count: others do the rest.
LONG = 0.005

_now = time.monotonic


class Inbox:
    """One for the threads of a worker, which are numbered from 0 on.

    The dispatcher puts jobs in and calls threads; each thread gets its jobs itself. What both
    touch is changed by single operations that the interpreter does not interrupt.

    :param batch: knows how long jobs take.
    """

    def __init__(self, batch: BatchSize) -> None:
        self._batch = batch
        self._claims: deque[Claim] = deque()
        self._idle: deque[int] = deque()  # the last one to come is called first: it is warm
        self._calls: list[threading.Lock] = []  # released to call a thread that is idle
        self._began: list[float] = []  # when each thread was called, or got its last job
        self._is_open = True

    def __len__(self) -> int:
        return len(self._claims)

    # -- for the dispatcher -------------------------------------------------------------------

    def add_thread(self, number: int) -> None:
        """Make room for a thread: the next one, or one in the place of another that has ended."""
        call = threading.Lock()
        call.acquire()
        if number == len(self._calls):
            self._calls.append(call)
            self._began.append(_now())
        else:
            self._calls[number] = call

    def put(self, claims: Iterable[Claim]) -> None:
        """Let jobs wait for a thread; :meth:`call` comes next."""
        self._claims.extend(claims)

    def call(self) -> None:
        """Wake as many threads as are of use for what waits."""
        wanted = len(self._claims)
        if not wanted:
            return
        at_work = self._at_work()
        if self._batch.is_crowded(max(1, at_work)):
            wanted = 0 if at_work else 1
        for _ in range(wanted):
            try:
                number = self._idle.pop()
            except IndexError:
                return
            self._began[number] = _now()
            self._calls[number].release()

    def next_call(self) -> float:
        """Return when the next :meth:`call` is due, as who is at work takes long."""
        if not self._claims or not self._idle:
            return math.inf
        return max(self._began) + LONG

    def take_back(self) -> list[Claim]:
        """Return the jobs that still wait: they do so no more."""
        claims = []
        while self._claims:
            try:
                claims.append(self._claims.popleft())
            except IndexError:
                break  # a thread was quicker
        return claims

    def close(self) -> None:
        """Let every thread end after its job."""
        self._is_open = False
        while self._idle:
            self._calls[self._idle.pop()].release()

    # -- for the threads ----------------------------------------------------------------------

    def get(self, number: int) -> Claim | None:
        """Wait for a job; None: there will be no more."""
        at_work = self._at_work()
        gives_way = at_work > 1 and self._batch.is_crowded(at_work)
        while True:
            if not gives_way and self._claims:
                try:
                    claim = self._claims.popleft()
                except IndexError:
                    continue  # another one was quicker
                self._began[number] = _now()
                return claim
            self._idle.append(number)
            if not self._is_open:
                return None
            # What was put in just before has called nobody; and all others may have given way.
            if self._claims and not (gives_way and self._at_work()):
                try:
                    self._idle.remove(number)
                except ValueError:
                    self._calls[number].acquire()  # called meanwhile
                gives_way = False
                continue
            self._calls[number].acquire()
            gives_way = False

    def _at_work(self) -> int:
        """How many threads will soon come for another job."""
        since = _now() - LONG
        return sum(
            began > since and number not in self._idle for number, began in enumerate(self._began)
        )

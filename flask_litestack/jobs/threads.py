"""The threads of a worker that run jobs; what exceeds its time is interrupted, and given up."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Container

from ..errors import JobTimeout
from .batch import BatchSize
from .board import Board
from .claims import Claim, Outcome
from .current import CurrentJob
from .inbox import Inbox
from .queue import JobQueue
from .runner import Runner

log = logging.getLogger("flask_litestack.jobs")

#: Seconds between two tries to stop a job at its timeout, and until it is given up.
INSIST = 1.0
GIVE_UP = 5.0

#: Jobs that did not stop may occupy so many threads, beyond those that work.
SPARE = 32

_now = time.monotonic


class Threads:
    """Each runs one job after the other. The dispatcher calls all methods.

    :param count: how many run jobs.
    :param on_end: called on the thread that has run a job: with the job; with what is to be
        stored, None if the job is no longer this worker's; and with the seconds that it took.
    """

    def __init__(
        self,
        count: int,
        jobs: JobQueue,
        runner: Runner,
        board: Board,
        batch: BatchSize,
        inbox: Inbox,
        on_end: Callable[[Claim, Outcome | None, float], object],
    ) -> None:
        self._count = count
        self._jobs = jobs
        self._runner = runner
        self._board = board
        self._batch = batch
        self._inbox = inbox
        self._on_end = on_end
        self._active: list[Active | None] = [None] * count
        self._running: dict[int, threading.Thread] = {}
        self._lost = 0

    def start(self) -> None:
        """Start them."""
        for slot in range(self._count):
            self._start(slot)

    def join(self) -> None:
        """Wait for those that have no job, once the inbox is closed."""
        for slot, thread in self._running.items():
            if self._active[slot] is None:
                thread.join(1.0)

    @property
    def busy(self) -> bool:
        """Whether any job is being run, those that are given up included."""
        return any(self._active)

    @property
    def lost(self) -> int:
        """How many threads have been given up with their jobs."""
        return self._lost

    def slow(self, since: float) -> int:
        """How many have been at their job since before that time, and are not given up."""
        return sum(
            active is not None and not active.is_given_up and active.began < since
            for active in self._active
        )

    def next_deadline(self) -> float:
        """Return when :meth:`interrupt` is due, on the monotonic clock."""
        return min((a.deadline for a in self._active if a is not None), default=math.inf)

    # -- what the jobs are told ---------------------------------------------------------------

    def tell_to_stop(self) -> None:
        """Let all jobs know that the worker stops."""
        for active in self._active:
            if active is not None:
                active.current.stop()

    def cancel(self, wanted: Container[int]) -> None:
        """Let these jobs know that they are cancelled."""
        for active in self._active:
            if active is not None and active.claim.id in wanted:
                active.current.cancel()

    def interrupt(self, now: float) -> list[tuple[int, Active]]:
        """Interrupt the jobs whose time is over; return those that do not stop, for give_up."""
        hopeless = []
        for slot, active in enumerate(self._active):
            if active is None or now < active.deadline:
                continue
            if active.overran_at is None:
                active.overran_at = now
            if now < active.overran_at + GIVE_UP:
                active.deadline = now + INSIST
                active.current.interrupt()
            else:
                hopeless.append((slot, active))
        return hopeless

    def give_up(self, slot: int, active: Active) -> Outcome:
        """Go on without a thread whose job does not stop; return what is to be stored of it."""
        active.deadline = math.inf
        active.is_given_up = True
        self._board.overran(slot)
        error = JobTimeout(
            "it did not stop at its timeout: Python code gets the exception, but a call into C "
            "(a request without a timeout, a long sleep) cannot be interrupted"
        )
        outcome = self._runner.failed(active.claim, active.started, error)
        self._lost += 1
        log.error("job %d %s does not stop at its timeout", active.claim.id, active.claim.task)
        return outcome

    def replace_one(self) -> None:
        """Start a thread in the place of one that was given up, if there may be so many."""
        spare = range(self._count, len(self._active))
        free = [slot for slot in spare if not self._running[slot].is_alive()]
        if not free and len(self._active) < self._count + SPARE:
            free = [len(self._active)]
            self._active.append(None)
        if free:
            self._start(free[0])

    # -- the threads --------------------------------------------------------------------------

    def _start(self, slot: int) -> None:
        # A daemon, because nothing can make a thread end that hangs in a job.
        self._inbox.add_thread(slot)
        name = f"litestack-job-{slot}"
        thread = threading.Thread(target=self._work, args=(slot,), name=name, daemon=True)
        thread.start()
        self._running[slot] = thread

    def _work(self, slot: int) -> None:
        while (claim := self._inbox.get(slot)) is not None:
            busy = time.thread_time()
            active = Active(claim, CurrentJob(claim), self._jobs.now(), self._timeout_of(claim))
            self._active[slot] = active
            self._board.begin(slot, claim.id, active.started)
            try:
                outcome: Outcome | None = self._runner.run(claim, active.current)
            except BaseException as error:
                # A timeout may strike between the end of the task and our taking note of that.
                # Whatever else it is, neither the thread nor the job may be lost by it.
                active.current.leave()
                if not isinstance(error, JobTimeout):
                    log.exception("job %d %s could not be run", claim.id, claim.task)
                outcome = self._runner.failed(claim, active.started, error)
            self._board.end(slot)
            self._active[slot] = None
            if active.is_given_up:
                return  # another thread has taken this one's place
            took = _now() - active.began
            self._batch.learn(took, time.thread_time() - busy)
            self._on_end(claim, outcome, took)

    def _timeout_of(self, claim: Claim) -> float:
        task = self._jobs.tasks.get(claim.task)
        timeout = task.declaration.timeout if task else None
        return math.inf if timeout is None else _now() + timeout


class Active:
    """A job while a thread runs it."""

    __slots__ = ("began", "claim", "current", "deadline", "is_given_up", "overran_at", "started")

    def __init__(self, claim: Claim, current: CurrentJob, started: float, deadline: float) -> None:
        self.claim = claim
        self.current = current
        self.started = started
        self.began = _now()
        self.deadline = deadline
        self.overran_at: float | None = None
        self.is_given_up = False

"""A worker process: one thread that claims and acknowledges, and some that run jobs.

The dispatcher, on the thread that calls :meth:`Worker.run`, does everything that touches the
queue: one transaction acknowledges what has ended and claims what comes next. Between two of
them it sleeps until somebody wakes it: a datagram of whoever enqueued a job, a thread that has
finished one, the death of another worker, or the time of the next scheduled job. A slow look at
the tables (the sweep) makes good for wake-ups that were lost.
"""

from __future__ import annotations

import logging
import math
import os
import select
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from flask import Flask

from ..errors import LockError
from ..process.bell import Bell
from ..process.liveness import Life
from ..process.mapped import NO_ROOM
from ..process.wakeup import Mailbox, wake
from ..sqlite import driver
from .batch import BatchSize
from .board import Board
from .claims import ANY_QUEUE, Claim, Claims, Outcome, Retention
from .ends import store_ends
from .inbox import Inbox
from .peers import Peers
from .queue import CONTROL, JOBS, WORKER, JobQueue, read_hint
from .recovery import recover
from .runner import Runner, watching_commits
from .tally import Progress, Tally
from .task import check_queue
from .threads import SPARE, Threads
from .timetable import Timetable

log = logging.getLogger("flask_litestack.jobs")

#: Seconds between two looks at the tables without being woken.
SWEEP = 5.0

#: Seconds that the end of a short job waits for others to be acknowledged with.
GROUPING = 0.002

#: Seconds that a claimed job may wait for a thread before it is put back.
PATIENCE = 0.01

#: Bounds in seconds of the wait before another try when the database is not well.
RETRY_FIRST = 0.05
RETRY_LONGEST = 2.0

#: What a worker wakes the others with that was woken in vain.
PASSED_ON = b"\1"

#: Seconds between two runs of PRAGMA optimize.
OPTIMIZE = 3600.0

#: The exit code that asks for another process in the place of this one.
EXIT_REPLACE = 75

#: The exit code of a process that has drained the queues, when some jobs have failed.
EXIT_JOBS_FAILED = 4

_now = time.monotonic


class Worker:
    """Runs jobs of an app until :meth:`stop`, or until there are none with ``drain``.

    :param queues: names, the most urgent first; ``*`` stands for all others.
    :param threads: jobs that run at the same time.
    :param drain: end as soon as no job is ready.
    :param supervised: somebody starts another process when this one ends, so it may end to get
        rid of a job that does not stop.
    :param tick: called by the dispatcher whenever it wakes up.
    :raises ConfigError: for a name that no queue can have.
    """

    def __init__(
        self,
        app: Flask,
        jobs: JobQueue,
        *,
        queues: Sequence[str],
        threads: int,
        drain: bool = False,
        supervised: bool = False,
        tick: Callable[[Progress], object] | None = None,
    ) -> None:
        self._app = app
        self._jobs = jobs
        for queue in queues:
            if queue != ANY_QUEUE:
                check_queue(queue)
        self._queues = tuple(queues)
        self._thread_count = max(1, threads)
        self._drain = drain
        self._supervised = supervised
        self._tick = tick
        with app.app_context():
            self._settings = app.extensions["litestack"].settings
        self._bell = Bell()
        self._tally = Tally()
        self._has_begun = False
        self._stopping = False
        self._deadline = math.inf  # of the grace time

    def stop(self, grace: float | None = None) -> None:
        """Have :meth:`run` end: no new jobs, and ``grace`` seconds for those that run.

        The time is LITESTACK_JOBS_GRACE by default; another call shortens it to a second. Safe
        in a signal handler.
        """
        if grace is None:
            grace = 1.0 if self._stopping else self._settings.jobs_grace
        self._deadline = min(self._deadline, _now() + grace)
        self._stopping = True
        self._bell.ring()

    def run(self) -> int:
        """Run jobs on this thread and its own; return the exit code of the process.

        0: stopped or drained. 75: another process should take the place of this one, which has
        a job that cannot be stopped.
        """
        with self._app.app_context(), watching_commits(self._jobs.database):
            self._open()
            try:
                while self._step():
                    self._sleep()
                return EXIT_REPLACE if self._threads.lost and self._supervised else 0
            finally:
                self._close()

    @property
    def has_stuck_jobs(self) -> bool:
        """Whether threads of this process still run jobs that it has given up."""
        return self._has_begun and self._threads.busy

    @property
    def progress(self) -> Progress:
        """How many jobs have ended."""
        return self._tally.progress

    # -- beginning and end --------------------------------------------------------------------

    def _open(self) -> None:
        settings = self._settings
        run_path = self._run_path = self._jobs.run_path
        retention = Retention(settings.jobs_keep_succeeded, settings.jobs_keep_failed)
        self._connection = self._jobs.connect()
        self._control = Mailbox(run_path, CONTROL)
        self._mailbox = Mailbox(run_path, JOBS)
        self._life = Life(run_path, WORKER)
        self._claims = Claims(self._connection, self._life.name, retention)
        runner = Runner(self._app, self._jobs, self._life.name, retention)
        self._peers = Peers(run_path, WORKER, self._life.name)
        self._timetable = Timetable(self._jobs, self._jobs.schedules())
        self._batch = BatchSize()
        self._inbox = Inbox(self._batch)
        self._ended: deque[Outcome | Claim] = deque()  # a Claim: it was lost, nothing to store
        self._unstored: list[Outcome] = []
        self._in_hand: dict[int, Claim] = {}
        self._unwanted: list[Claim] = []  # of those in hand: to be put back
        self._hungry = True  # there may be jobs in the table
        self._must_look = True
        self._is_uncertain = False
        self._is_hidden = False
        self._has_hint = False  # somebody woke this process, and counts on its finding a job
        self._hinted = 0  # that job, as long as there was no other to be run
        self._low = 0
        self._listens = False
        self._groups_until = -math.inf
        self._started_waiting = _now()
        self._retry_at = -math.inf
        self._retry_delay = RETRY_FIRST
        self._next_due = math.inf
        self._sweep_at = -math.inf
        self._optimize_at = _now() + OPTIMIZE
        self._clock_offset = self._jobs.now() - _now()
        self._board = self._make_board(run_path)
        self._threads = Threads(
            self._thread_count,
            self._jobs,
            runner,
            self._board,
            self._batch,
            self._inbox,
            self._on_end,
        )
        self._has_begun = True
        self._threads.start()
        wake(run_path, CONTROL)  # the others watch this process from here on
        self._control.drain()
        log.info(
            "worker %s starts: queues %s, %d threads",
            self._life.name,
            ",".join(self._queues),
            self._thread_count,
        )

    def _make_board(self, run_path: Path) -> Board:
        """Make the board, once there is room on the disk: nothing could be claimed before."""
        about = {
            "queues": self._queues,
            "threads": self._thread_count,
            "started_at": self._jobs.now(),
        }
        slots = self._thread_count + SPARE
        while True:
            try:
                return Board(run_path, self._life.name, slots, about)
            except OSError as error:
                if error.errno not in NO_ROOM or self._stopping:
                    raise
                log.warning("the worker waits for room on the disk: %s", error)
            if self._tick is not None:
                self._tick(self.progress)
            time.sleep(RETRY_LONGEST)

    def _close(self) -> None:
        self._give_back_all()
        self._inbox.close()
        self._threads.join()
        self._mailbox.close()
        self._control.close()
        self._peers.close()
        self._connection.close()
        self._bell.close()
        # What is left in our name, should the database have been out of reach, is taken over by
        # the others once the life is closed; they need the board for that.
        if not self._in_hand:
            self._board.close()
        self._life.close()
        wake(self._run_path, CONTROL)
        log.info("worker %s ends: %s", self._life.name, self.progress)

    def _on_end(self, claim: Claim, outcome: Outcome | None, took: float) -> None:
        """Take what a thread has finished; runs on that thread."""
        self._ended.append(claim if outcome is None else outcome)
        if self._listens and self._is_news(outcome, took):
            self._listens = False
            self._bell.ring()

    def _is_news(self, outcome: Outcome | None, took: float) -> bool:
        """Whether the dispatcher must be woken for the end of a job."""
        left = len(self._inbox)
        if not left or (self._hungry and left <= self._low):
            return True
        if outcome is None or outcome.is_committed:
            return False
        return took > GROUPING or self._groups_until == -math.inf

    # -- one round of the dispatcher ----------------------------------------------------------

    def _step(self) -> bool:
        """Do what there is to do; tell whether to go on."""
        now = _now()
        if now >= self._sweep_at:
            self._sweep(now)
        if self._stopping:
            self._threads.tell_to_stop()
        self._check_timeouts(now)
        if now >= self._retry_at:
            try:
                self._settle(now)
            except (LockError, driver.DatabaseError) as error:
                self._wait_for_database(now, error)
            else:
                self._retry_delay = RETRY_FIRST
        if self._tick is not None:
            self._tick(self.progress)
        return not self._is_done(now)

    def _is_done(self, now: float) -> bool:
        nothing_left = not self._in_hand and not self._unstored and not self._ended
        if self._stopping or (self._threads.lost and self._supervised):
            return nothing_left or now >= self._deadline
        if not self._drain or not nothing_left or self._hungry or self._must_look:
            return False
        self._look()  # the last job may have enqueued another, whose wake-up is still to come
        return not self._hungry

    def _settle(self, now: float) -> None:
        """Store what has ended and claim what comes next."""
        self._collect()
        self._take_back(now)
        self._inbox.call()
        room = self._room()
        clock = self._jobs.now()
        hinted, self._hinted = self._hinted, 0
        if hinted and room and not self._is_uncertain:
            self._take_hinted(hinted, clock)
        if self._must_look:
            self._look()
        if self._hungry and not room:
            self._leave_to_others()
        takes = room > 0 and self._hungry
        promotes = not self._stopping and self._next_due <= clock
        cron = not self._stopping and self._timetable.next() <= clock
        urgent = bool(self._unwanted) or takes or promotes or cron
        if urgent or (self._unstored and now >= self._groups_until):
            self._transact(room if takes or promotes or cron else 0, clock, promotes, cron)

    def _look(self) -> None:
        """Look whether there is something to do, without the lock."""
        self._next_due = self._due_in_table()
        self._hungry = self._claims.has_queued(self._queues)
        self._heed_hint(self._hungry)
        self._must_look = False
        if not self._hungry:
            self._show_hunger()

    def _take_hinted(self, job_id: int, clock: float) -> None:
        """Claim the job that this process was woken for: in half the time of a search."""
        self._is_uncertain = True
        claim = self._claims.take_one(job_id, self._queues, now=clock)
        self._is_uncertain = False
        self._hungry = False
        if claim is None:
            self._must_look = True
        else:
            self._has_hint = False
            self._hand_out([claim])

    def _leave_to_others(self) -> None:
        """Be woken no more while no thread is free, and wake the others for what we were."""
        self._show_hunger()
        if self._has_hint:
            wake(self._run_path, JOBS, besides=self._mailbox, note=PASSED_ON)
        self._has_hint = False

    def _heed_hint(self, found: bool) -> None:
        """Wake the others if we were woken in vain: the job may be of a queue of theirs."""
        if self._has_hint and not found and ANY_QUEUE not in self._queues:
            wake(self._run_path, JOBS, besides=self._mailbox, note=PASSED_ON)
        self._has_hint = False

    def _transact(self, room: int, clock: float, promotes: bool, cron: bool) -> None:
        claims = self._claims
        new: list[Claim] = []
        lost: list[Outcome] = []
        added = 0
        try:
            claims.begin()
            lost = store_ends(self._claims, self._unstored)
            if self._is_uncertain:
                self._reclaim()
            claims.give_back(self._unwanted, clock)
            if promotes:
                added += claims.promote(clock)
            if cron:
                added += self._timetable.enqueue(claims, clock)
            if room:
                suspects = not any(claim.crashes for claim in self._in_hand.values())
                new = claims.take(self._queues, room, now=clock, suspects=suspects)
            claims.commit()
        except BaseException:
            self._is_uncertain = True
            self._timetable.look_again()
            claims.rollback()
            raise
        self._hand_out(new)
        self._is_uncertain = False
        ended = [outcome.claim for outcome in self._unstored]
        self._tally.add(self._unstored, lost)
        self._must_look |= any(end.state == "queued" for end in self._unstored)  # to be run again
        self._unstored = []
        back, self._unwanted = self._unwanted, []
        self._groups_until = -math.inf
        self._forget([*ended, *back])
        if room or back:
            self._hungry = len(new) >= room or bool(back)
        if room:
            self._heed_hint(bool(new))
        self._show_hunger()
        if added > len(new):
            self._hungry = True
            wake(self._run_path, JOBS)
        elif self._hungry and (new or back):
            wake(self._run_path, JOBS, limit=1)  # there is more than this process has taken
        self._next_due = self._due_in_table()

    def _show_hunger(self) -> None:
        """Be woken for new jobs only if there are none already."""
        if self._hungry or self._stopping:
            self._mailbox.hide()
            self._is_hidden = True
        elif self._is_hidden:
            self._mailbox.show()
            self._is_hidden = False
            self._must_look = True  # for what was enqueued just before

    def _forget(self, claims: Sequence[Claim]) -> None:
        for claim in claims:
            self._in_hand.pop(claim.id, None)
            if claim.crashes:
                self._must_look = True  # another suspect may have its turn

    def _due_in_table(self) -> float:
        due = self._claims.next_due()
        return math.inf if due is None else due

    def _hand_out(self, claims: Sequence[Claim]) -> None:
        if not claims:
            return
        self._started_waiting = _now()
        self._low = len(claims) // 4
        is_idle = not self._threads.busy
        self._in_hand.update((claim.id, claim) for claim in claims)
        self._inbox.put(claims)
        self._inbox.call()
        if is_idle:
            time.sleep(0)  # lets one begin, rather than wait for the interpreter until we sleep

    def _collect(self) -> None:
        """Take what the threads have finished."""
        while self._ended:
            ended = self._ended.popleft()
            claim = ended if isinstance(ended, Claim) else ended.claim
            if isinstance(ended, Claim):
                self._forget([claim])
            elif ended.is_committed:
                self._forget([claim])
                self._tally.add([ended])
            else:
                if not self._unstored:
                    self._groups_until = _now() + GROUPING
                if ended.state != "succeeded" or ended.finished_at - ended.started_at > GROUPING:
                    self._groups_until = -math.inf
                self._unstored.append(ended)
            self._started_waiting = _now()

    def _room(self) -> int:
        """How many jobs to claim now: a few large claims are better than many small ones."""
        if self._stopping or (self._threads.lost and self._supervised):
            return 0
        slow = self._threads.slow(_now() - PATIENCE)
        free = self._thread_count - slow  # threads that will soon come for another job
        if free <= 0:
            return 0
        size = self._batch.size(free)
        room = size - (len(self._in_hand) - slow) + len(self._unstored)
        return max(0, room) if room >= size // 2 or not self._inbox else 0

    def _take_back(self, now: float) -> None:
        """Take back what waits for a thread in vain."""
        if self._stopping or now >= self._started_waiting + PATIENCE:
            self._unwanted += self._inbox.take_back()

    # -- timeouts, cancelling, stopping -------------------------------------------------------

    def _check_timeouts(self, now: float) -> None:
        for slot, active in self._threads.interrupt(now):
            self._ended.append(self._threads.give_up(slot, active))
            if self._supervised:
                self._deadline = min(self._deadline, _now() + self._settings.jobs_grace)
            else:
                self._threads.replace_one()

    def _cancel(self) -> None:
        wanted = self._claims.cancel_requests()
        if not wanted:
            return
        self._threads.cancel(wanted)
        # One that has not begun is put back, and cancelled there.
        waiting = self._inbox.take_back()
        for claim in waiting:
            if claim.id in wanted:
                now = self._jobs.now()
                self._ended.append(Outcome(claim, "cancelled", now, now, now, claim.failures))
            else:
                self._inbox.put([claim])

    # -- the sweep ----------------------------------------------------------------------------

    def _sweep(self, now: float) -> None:
        self._sweep_at = now + SWEEP
        self._must_look = True
        offset = self._jobs.now() - now
        if abs(offset - self._clock_offset) > 1.0:
            log.warning("the clock was changed by %.0f s", offset - self._clock_offset)
            self._timetable.look_again()
        self._clock_offset = offset
        try:
            self._watch()
            if recover(self._claims, self._run_path, self._life.name, self._jobs.now):
                self._hungry = True
            self._cancel()
            if not self._stopping and self._prune():
                self._sweep_at = now + GROUPING  # there is more
            if now >= self._optimize_at:
                self._optimize_at = now + OPTIMIZE
                self._claims.optimize()
        except (LockError, driver.DatabaseError) as error:
            self._claims.rollback()
            self._sweep_at = now + RETRY_LONGEST
            log.warning("the sweep failed, and is tried again: %s", error)

    def _watch(self) -> None:
        """Note who else is there, and what to wait for."""
        self._peers.refresh()
        self._watched = select.poll()
        own = (self._mailbox.fileno(), self._control.fileno(), self._bell.fileno())
        for fd in (*own, *self._peers.descriptors):
            self._watched.register(fd, select.POLLIN)

    def _reclaim(self) -> None:
        """Put back what is in this worker's name, but not in its hands: a commit was in doubt."""
        for claim in self._claims.mine():
            if claim.id not in self._in_hand:
                self._claims.give_back([claim], self._jobs.now())

    def _prune(self) -> bool:
        if not self._claims.has_expired(self._jobs.now()):
            return False
        self._claims.begin()
        pruned = self._claims.prune(self._jobs.now())
        self._claims.commit()
        return pruned > 0

    # -- waiting ------------------------------------------------------------------------------

    def _wait_for_database(self, now: float, error: Exception) -> None:
        """Try again soon: a busy database or a full disk is not the end of anything."""
        if self._threads.lost and self._supervised and isinstance(error, LockError):
            # The job that does not stop holds the write lock: it goes with this process.
            log.error("a job that does not stop holds the write lock: ending the process")
            logging.shutdown()
            os._exit(EXIT_REPLACE)
        self._retry_at = now + self._retry_delay
        log.warning("cannot claim or acknowledge jobs, trying again: %s", error)
        self._retry_delay = min(RETRY_LONGEST, self._retry_delay * 2)

    def _give_back_all(self) -> None:
        """At the end of the grace time: whoever is alive may run these jobs."""
        self._collect()
        ended = {outcome.claim.id for outcome in self._unstored}
        claims = [claim for claim in self._in_hand.values() if claim.id not in ended]
        for _ in range(3):
            try:
                self._claims.begin()
                store_ends(self._claims, self._unstored)
                self._claims.give_back(claims, self._jobs.now())
                self._claims.commit()
            except (LockError, driver.DatabaseError) as error:
                self._claims.rollback()
                log.warning("cannot put jobs back: %s", error)
            else:
                self._in_hand.clear()
                self._unstored.clear()
                break
        if claims:
            log.warning("put back %d jobs that had not ended", len(claims))
            wake(self._run_path, JOBS)

    def _sleep(self) -> None:
        """Wait until there is something to do."""
        self._listens = True
        timeout = self._next_wake_up() - _now()
        if self._ended and self._groups_until == -math.inf:
            timeout = 0.0
        mailbox, control = self._mailbox.fileno(), self._control.fileno()
        ready = {fd for fd, _ in self._watched.poll(max(0.0, timeout) * 1000)}
        self._listens = False
        if self._bell.fileno() in ready:
            self._bell.quiet()
        if mailbox in ready:
            notes = self._mailbox.drain()
            self._has_hint = any(note != PASSED_ON for note in notes)
            is_only_one = len(notes) == 1 and not self._hungry
            self._hinted = read_hint(notes[0]) if is_only_one else 0
            self._hungry = True
        if control in ready:
            self._control.drain()
            self._sweep_at = -math.inf
        elif ready - {mailbox, self._bell.fileno()}:
            self._sweep_at = -math.inf  # another worker has died

    def _next_wake_up(self) -> float:
        """When to wake up by itself, on the monotonic clock."""
        moments = [self._sweep_at]
        if self._unstored:
            moments.append(max(self._groups_until, self._retry_at))
        if self._unwanted:
            moments.append(self._retry_at)
        if self._inbox:
            soon = min(self._started_waiting + PATIENCE, self._inbox.next_call())
            moments.append(max(soon, self._retry_at))
        if self._stopping:
            moments.append(self._deadline)
        else:
            until = min(self._next_due, self._timetable.next()) - self._jobs.now()
            moments.append(max(_now() + until, self._retry_at))
            if self._must_look or (self._hungry and self._room()):
                moments.append(self._retry_at)
        moments.append(self._threads.next_deadline())
        return min(moments)

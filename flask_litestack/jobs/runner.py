"""Runs one job: its writes and its end are one commit."""

from __future__ import annotations

import asyncio
import logging
import random
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import CoroutineType
from typing import Any

from blinker import NamedSignal
from flask import Flask
from sqlalchemy import event
from sqlalchemy.orm import Session

from .. import signals
from ..db import Database
from ..errors import (
    ArgumentsError,
    DiskFullError,
    JobCancelled,
    JobTimeout,
    LitestackError,
    LockTimeout,
    UnknownTaskError,
)
from ..process import activity
from ..sqlite import driver
from .arguments import decode
from .checks import seconds
from .claims import MAX_TRACEBACK, Claim, Claims, Failure, Outcome, Retention
from .current import CurrentJob, current_job, set_current
from .job import State
from .queue import JobQueue
from .retry import Retry
from .task import Task

log = logging.getLogger("flask_litestack.jobs")

#: A job that this release does not know is put back: during a deployment the web is newer than
#: the worker for a while. After so many times of so many seconds it fails.
UNKNOWN_DELAY = 5.0
UNKNOWN_LIMIT = 60

#: So often a job is put back because the database was busy or the disk full, which is not its
#: fault, before that counts as a failure of its own.
UNWELL_LIMIT = 20
UNWELL_LONGEST = 60.0

#: The longest text of an error that is kept, in characters; of a longer one the beginning is.
MAX_ERROR = 1000

#: SQLite's primary codes BUSY, LOCKED, IOERR and FULL.
_UNWELL = frozenset({5, 6, 10, 13})


class ClaimLost(LitestackError):
    """Raised when somebody else has the job by now: what it wrote is rolled back."""


class Runner:
    """Runs claimed jobs of an app. One for each thread.

    :param worker: the name of the worker that claims them.
    """

    def __init__(self, app: Flask, jobs: JobQueue, worker: str, retention: Retention) -> None:
        self._app = app
        self._jobs = jobs
        self._worker = worker
        self._retention = retention

    def run(self, claim: Claim, current: CurrentJob) -> Outcome | None:
        """Run a job to its end; return how it ended, or None if it is not ours any more."""
        started = self._jobs.now()
        task = self._jobs.tasks.get(claim.task)
        if task is None:
            return self._unknown(claim, started)
        outcome: Outcome | None = None
        set_current(current)
        activity.current.set(f"job {claim.id} {claim.task}")
        try:
            with self._app.app_context():
                outcome = self._attempt(task, claim, current, started)
        except ClaimLost:
            log.warning("job %d %s: its claim was lost; rolled back", claim.id, claim.task)
            return None
        except Exception as error:
            # The app context did not close well, e.g. in a teardown function of the app.
            log.exception("job %d %s: the app context did not close", claim.id, claim.task)
            return outcome or self.failed(claim, started, error)
        finally:
            set_current(None)
            activity.current.set("")
        return outcome

    def _attempt(
        self, task: Task[Any, Any], claim: Claim, current: CurrentJob, started: float
    ) -> Outcome:
        error: BaseException | None = None
        database = self._jobs.database
        if signals.job_started.receivers:
            self._send(signals.job_started, job=current)
        try:
            self._call(task, claim, current)
            current.is_ending = True
            if database.has_uncommitted():
                outcome = self._commit(claim, started)
            else:
                outcome = self._succeeded(claim, started)
        except ClaimLost:
            raise
        except BaseException as raised:  # SystemExit too: a task does not end the worker
            current.leave()
            error = raised
            outcome = self.failed(claim, started, raised)
        # Here and now: what hears of the end must neither commit what failed nor join it, and
        # what goes wrong from here on must not keep the write lock.
        database.end_unit()
        if current.has_committed:
            _warn_of_own_commit(task)
        if signals.job_ended.receivers:
            seconds = outcome.finished_at - started
            self._send(
                signals.job_ended, job=current, state=outcome.state, error=error, seconds=seconds
            )
        return outcome

    def _send(self, signal: NamedSignal, **about: Any) -> None:
        """Send a signal; a receiver that fails changes nothing about the job."""
        try:
            signal.send(self._app, **about)
        except Exception:
            log.exception("a receiver of %s failed", signal.name)
            self._jobs.database.end_unit()  # and what it had begun to write

    def _call(self, task: Task[Any, Any], claim: Claim, current: CurrentJob) -> None:
        self._jobs.database.begin_unit()
        args, kwargs = decode(claim.arguments)
        try:
            current.enter()
            result = task.function(*args, **kwargs)
            if type(result) is CoroutineType:
                asyncio.run(_run(result, current))
        finally:
            current.leave()

    def _commit(self, claim: Claim, started: float) -> Outcome:
        """Commit what the task wrote together with the end of the job."""
        database = self._jobs.database
        session = database.session
        outcome = self._succeeded(claim, started, is_committed=True)
        connection = database.session_connection()
        if not Claims.finish_with(connection, outcome, self._retention):
            session.rollback()
            raise ClaimLost
        session.commit()
        return outcome

    def _succeeded(self, claim: Claim, started: float, *, is_committed: bool = False) -> Outcome:
        return Outcome(
            claim,
            "succeeded",
            started,
            self._jobs.now(),
            claim.run_at,
            claim.failures,
            is_committed=is_committed,
        )

    def failed(self, claim: Claim, started: float, error: BaseException) -> Outcome:
        """Decide what becomes of a job whose attempt raised an exception."""
        try:
            return self._decide(claim, started, error)
        except Exception as broken:
            log.exception("job %d %s: its retry policy failed", claim.id, claim.task)
            now, failures = self._jobs.now(), claim.failures + 1
            return Outcome(claim, "failed", started, now, now, failures, failure=describe(broken))

    def _decide(self, claim: Claim, started: float, error: BaseException) -> Outcome:
        policy = self._jobs.tasks[claim.task].declaration.policy
        now = self._jobs.now()
        failure = describe(error)
        retry = claim.failures + 1
        if isinstance(error, JobCancelled) or policy.discards(error):
            return Outcome(claim, "cancelled", started, now, now, claim.failures, failure=failure)
        if isinstance(error, ArgumentsError):
            return Outcome(claim, "failed", started, now, now, retry, failure=failure)
        if _is_unwell(error) and claim.postponed < UNWELL_LIMIT:
            delay = random.uniform(0.5, 1.0) * min(UNWELL_LONGEST, 2.0**claim.postponed)
            return self._put_back(claim, started, failure, delay)
        if policy.retries(error) and policy.allows(retry, claim.retries):
            given = error.delay if isinstance(error, Retry) else None
            delay = seconds("its delay", policy.delay(retry)) if given is None else given
            state: State = "scheduled" if delay > 0 else "queued"
            return Outcome(claim, state, started, now, now + delay, retry, failure=failure)
        return Outcome(claim, "failed", started, now, now, retry, failure=failure)

    def _unknown(self, claim: Claim, started: float) -> Outcome:
        error = UnknownTaskError(
            f"no module that this worker has imported declares the task {claim.task}. Import it "
            "in your app factory; or give the task its old name= if you have renamed it."
        )
        failure = describe(error)
        if claim.postponed < UNKNOWN_LIMIT:
            return self._put_back(claim, started, failure, UNKNOWN_DELAY)
        now = self._jobs.now()
        return Outcome(claim, "failed", started, now, now, claim.failures + 1, failure=failure)

    def _put_back(self, claim: Claim, started: float, failure: Failure, delay: float) -> Outcome:
        now = self._jobs.now()
        return Outcome(
            claim,
            "scheduled",
            started,
            now,
            now + delay,
            claim.failures,
            claim.postponed + 1,
            # The first time is enough: the others are the same.
            failure if claim.postponed == 0 else None,
        )


@contextmanager
def watching_commits(database: Database) -> Iterator[None]:
    """Notice, in this process, when a task commits by itself."""

    def before_commit(session: Session) -> None:
        current = current_job()
        if current is None or current.is_ending or session.in_nested_transaction():
            return
        if session is database.session and database.has_uncommitted():
            current.has_committed = True

    event.listen(Session, "before_commit", before_commit)
    try:
        yield
    finally:
        event.remove(Session, "before_commit", before_commit)


_warned: set[str] = set()


def _warn_of_own_commit(task: Task[Any, Any]) -> None:
    if task.name not in _warned:
        _warned.add(task.name)
        log.warning(
            "task %s commits by itself: should the worker die after that commit, the job runs "
            "again. Leave the commit to the worker, and its writes are stored exactly once.",
            task.name,
        )


async def _run(coroutine: CoroutineType[Any, Any, Any], current: CurrentJob) -> None:
    """Run a coroutine such that a timeout cancels it, which a thread that waits cannot be."""
    loop, this = asyncio.get_running_loop(), asyncio.current_task()
    assert this is not None
    current.enter_coroutine(lambda: loop.call_soon_threadsafe(this.cancel))
    try:
        await coroutine
    except asyncio.CancelledError:
        if not current.is_interrupted:
            raise
        raise JobTimeout("the coroutine was cancelled at its timeout") from None
    finally:
        current.leave_coroutine()


def describe(error: BaseException) -> Failure:
    """Return what is kept of an exception, whatever its text is made of."""
    text = "".join(traceback.format_exception_only(error)).strip()
    lines = "".join(traceback.format_exception(error))
    return Failure(_storable(text[:MAX_ERROR]), _storable(lines[-MAX_TRACEBACK:]))


def _storable(text: str) -> str:
    """Write out what is no text for SQLite: a lone surrogate (of a file name, say), and NUL."""
    return text.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode()


def _is_unwell(error: BaseException) -> bool:
    """Tell whether it is the database that is not well, not the task: busy, or the disk full."""
    cause = getattr(error, "orig", error)
    if isinstance(cause, LockTimeout | DiskFullError):
        return True
    if not isinstance(cause, driver.OperationalError) or isinstance(cause, LitestackError):
        return False
    return getattr(cause, "sqlite_errorcode", 0) & 0xFF in _UNWELL

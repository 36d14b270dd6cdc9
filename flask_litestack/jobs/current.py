"""The job that the calling code runs in."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from contextvars import ContextVar

from ..errors import JobCancelled, JobTimeout
from .claims import Claim

_current: ContextVar[CurrentJob | None] = ContextVar("flask_litestack_job", default=None)


class CurrentJob:
    """A job while its task runs, as the task sees it."""

    def __init__(self, claim: Claim) -> None:
        self._claim = claim
        self._mutex = threading.Lock()
        self._thread = threading.get_ident()
        self._in_task = False
        self._interrupted = False
        self._cancel_coroutine: Callable[[], object] | None = None
        self._cancelled = False
        self._stopping = False
        #: Whether the worker is about to commit the job's writes and its end.
        self.is_ending = False
        #: Whether the task has committed something by itself.
        self.has_committed = False

    @property
    def id(self) -> int:
        """The job's id."""
        return self._claim.id

    @property
    def task(self) -> str:
        """The task's name."""
        return self._claim.task

    @property
    def attempt(self) -> int:
        """1, 2, ...: which attempt this is."""
        return self._claim.attempt

    @property
    def cancelled(self) -> bool:
        """Whether somebody has cancelled the job. A long task looks now and then, and ends."""
        return self._cancelled

    @property
    def stopping(self) -> bool:
        """Whether the worker has been told to stop: the job is put back if it takes too long."""
        return self._stopping

    def check(self) -> None:
        """Raise :class:`JobCancelled` if somebody has cancelled the job."""
        if self._cancelled:
            raise JobCancelled(f"job {self.id} was cancelled")

    # -- the worker's side --------------------------------------------------------------------

    def cancel(self) -> None:
        """Tell the task that the job is cancelled."""
        self._cancelled = True

    def stop(self) -> None:
        """Tell the task that the worker stops."""
        self._stopping = True

    def enter(self) -> None:
        """Say that the task's own code begins on this thread."""
        self._thread = threading.get_ident()
        self._in_task = True

    def leave(self) -> None:
        """Say that it has ended: from here on the thread cannot be interrupted."""
        with self._mutex:
            self._in_task = False
            if self._interrupted:
                _raise_in(self._thread, None)

    def enter_coroutine(self, cancel: Callable[[], object]) -> None:
        """Say that the task is a coroutine, and how to cancel it from another thread."""
        with self._mutex:
            self._cancel_coroutine = cancel

    def leave_coroutine(self) -> None:
        """Say that the coroutine has ended."""
        with self._mutex:
            self._cancel_coroutine = None

    @property
    def is_interrupted(self) -> bool:
        """Whether the task was told to stop at its timeout."""
        return self._interrupted

    def interrupt(self) -> None:
        """Raise :class:`JobTimeout` in the task, at the next line of Python that it runs.

        A coroutine is cancelled the first time: it may be waiting, and so run no line at all.
        """
        with self._mutex:
            if not self._in_task:
                return
            again, self._interrupted = self._interrupted, True  # before it can be asked for
            if self._cancel_coroutine is not None and not again:
                self._cancel_coroutine()
            else:
                _raise_in(self._thread, JobTimeout)


def current_job() -> CurrentJob | None:
    """Return the job that the calling code runs in, None outside of jobs."""
    return _current.get()


def set_current(job: CurrentJob | None) -> None:
    """Set the job of the calling thread."""
    _current.set(job)


def _raise_in(thread: int, error: type[BaseException] | None) -> None:
    """Have a thread raise an error, or not raise it after all (CPython's own means)."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread), None if error is None else ctypes.py_object(error)
    )

"""Brings commits to the disk within a second, and keeps the write-ahead log small.

With ``synchronous = NORMAL`` a commit is in the kernel's hands, safe from the death of any
process, but only a checkpoint makes it safe from a power cut. One short-lived thread for each
file does that, while there is something new. With FULL, each commit also syncs the log before it
returns.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from weakref import WeakSet

from ..errors import LockError, StoreError
from ..process.writequeue import Hold, WriteQueue
from . import driver

log = logging.getLogger(__name__)

#: Seconds from the first commit that is not yet synced to the checkpoint.
INTERVAL = 0.9

#: Seconds without a commit after which the thread ends.
IDLE = 3.0

#: Frames in the log beyond which the writers are asked to wait for the rest of the checkpoint.
#: Otherwise writers that never pause keep the log from starting anew.
LONG_LOG = 4000

#: Syncs what a file holds, without its times where the system can.
_fdatasync: Callable[[int], object] = getattr(os, "fdatasync", os.fsync)

_syncers: WeakSet[Syncer] = WeakSet()

#: Held while a syncer is inside SQLite. A fork waits for it: a child that is born while SQLite's
#: own mutexes are locked would wait for them for ever.
_inside = threading.Lock()


class Log:
    """The write-ahead log of one file, as something to be synced."""

    def __init__(self, path: Path) -> None:
        self._path = f"{path}-wal"
        self._mutex = threading.Lock()
        self._begun = 0  # syncs so far
        self._done = 0  # the number of the last one that has ended

    def sync(self) -> None:
        """Bring all that this thread has committed to the disk.

        Threads that come while another one syncs share the next sync.

        :raises StoreError: if the disk fails. The commit stands, and every process sees it, but
            a power cut may lose it.
        """
        seen = self._begun
        with self._mutex:
            if self._done > seen:
                return  # it began after this thread's commit
            self._begun += 1
            try:
                # SQLite holds no locks on this file, so closing a descriptor of it drops none.
                fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                return  # checkpointed, which has synced it, and removed
            try:
                _fdatasync(fd)
            except OSError as error:
                raise StoreError(
                    f"a commit stands, but the disk failed to store {self._path} "
                    f"({error.strerror}): a power cut may lose it. Check the disk."
                ) from error
            finally:
                os.close(fd)
            self._done = self._begun


class Syncer:
    """The checkpointer of one file in this process."""

    def __init__(self, path: Path, queue: WriteQueue, log: Log) -> None:
        self._path = path
        self._log = log
        self._queue = queue
        self._mutex = threading.Lock()
        self._news = threading.Event()
        self._running = False
        self._warned = False  # that no thread could be started
        _syncers.add(self)

    def note(self) -> bool:
        """Say that something was committed. Costs nothing while the thread knows already.

        Returns whether the thread will see to it. False: none can be started (a limit on
        processes, the end of the interpreter), so who commits had better sync by itself.
        """
        if self._running and self._news.is_set():
            return True
        with self._mutex:
            self._news.set()
            if not self._running:
                self._running = self._start()
            return self._running

    def sync(self) -> None:
        """Checkpoint now."""
        self._news.clear()
        with _inside:
            if self._path.exists():
                self._checkpoint()

    def _start(self) -> bool:
        name = f"litestack-sync {self._path.name}"
        try:
            threading.Thread(target=self._loop, name=name, daemon=True).start()
        except RuntimeError as error:
            if not self._warned:
                log.warning("no thread for the checkpoints of %s: %s", self._path, error)
            self._warned = True
            return False
        self._warned = False
        return True

    def _loop(self) -> None:
        log.debug("the syncer of %s starts", self._path)
        while self._awaits_news():
            time.sleep(INTERVAL)
            try:
                self.sync()
            except Exception:
                log.exception("the checkpoint of %s failed; trying again", self._path)
                self._news.set()
        log.debug("the syncer of %s ends: nothing new", self._path)

    def _awaits_news(self) -> bool:
        if self._news.wait(IDLE):
            return True
        with self._mutex:
            self._running = self._news.is_set()
            return self._running

    def _checkpoint(self) -> None:
        connection = driver.module.connect(
            self._path, timeout=1, isolation_level=None, check_same_thread=False
        )
        try:
            frames, done = _passive(connection)
            if frames > LONG_LOG and done < frames:
                self._checkpoint_alone(connection)
            elif done < frames:
                self._log.sync()  # a long reader keeps the checkpoint from its end
        finally:
            connection.close()

    def _checkpoint_alone(self, connection: driver.Connection) -> None:
        hold = Hold()
        try:
            with suppress(LockError):  # the next round tries again
                self._queue.acquire(hold, time.monotonic() + 1.0)
                _passive(connection)
        finally:
            self._queue.release(hold)


def _passive(connection: driver.Connection) -> tuple[int, int]:
    """Checkpoint without waiting for anybody; return the frames in the log, and those done."""
    _, frames, done = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
    return frames, done


def _sync_all() -> None:
    for syncer in list(_syncers):
        if syncer._news.is_set():
            try:
                syncer.sync()
            except Exception:
                log.exception("the last checkpoint of %s failed", syncer._path)


def _after_fork_in_child() -> None:
    _inside.release()
    _syncers.clear()


atexit.register(_sync_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_inside.acquire,
        after_in_parent=_inside.release,
        after_in_child=_after_fork_in_child,
    )

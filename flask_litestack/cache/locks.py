"""One caller computes a value, in whatever process: locks by key, freed by the kernel.

A lock is one byte of a file, held as a POSIX record lock: the kernel frees it when the process
dies, and a forked child does not inherit it. Such a lock belongs to the whole process, so that
threads are told apart by a table. Waiting is done in short sleeps, because a record lock cannot
be waited for with a deadline.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from pathlib import Path

#: Bounds in seconds of the sleep between two tries; it grows with the time waited.
SLEEP = (0.0005, 0.02)

_OFFSETS = (1 << 62) - 1

_by_path: dict[Path, KeyLocks] = {}


class KeyLocks:
    """Locks of the ids of entries, for all processes that use the same file.

    Got by :func:`locks_at`: a second object over one file would share its locks, and drop them.

    :param path: the file, made if it is missing. It is opened once and never closed: closing any
        descriptor of it would drop every lock of the process.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None
        self._mutex = threading.Lock()
        self._owners: dict[int, int] = {}

    def acquire(self, number: int) -> bool:
        """Try to take the lock. False if someone else has it.

        :raises OSError: if the file cannot be made.
        """
        import fcntl

        with self._mutex:
            if number in self._owners:
                return False
            if self._fd is None:
                self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number & _OFFSETS)
            except (BlockingIOError, PermissionError):  # EAGAIN or EACCES, says POSIX
                return False
            self._owners[number] = threading.get_ident()
            return True

    def release(self, number: int) -> None:
        """Give the lock back; nothing if this process does not have it (after a fork)."""
        import fcntl

        with self._mutex:
            if self._owners.pop(number, None) is not None and self._fd is not None:
                with suppress(OSError):
                    fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, number & _OFFSETS)

    def is_mine(self, number: int) -> bool:
        """Whether the calling thread has the lock, so that waiting for it would never end."""
        return self._owners.get(number) == threading.get_ident()

    def after_fork(self) -> None:
        """In the child: hold nothing."""
        self._mutex = threading.Lock()
        self._owners = {}


def locks_at(path: Path) -> KeyLocks:
    """Return the locks of a file, the same ones for every caller of this process."""
    locks = _by_path.get(path)
    if locks is None:
        real = Path(os.path.realpath(path))
        locks = _by_path[path] = _by_path.setdefault(real, KeyLocks(real))
    return locks


def pause(waited: float) -> None:
    """Sleep until the next try, after ``waited`` seconds of tries."""
    time.sleep(min(max(waited / 8, SLEEP[0]), SLEEP[1]))


def _after_fork_in_child() -> None:
    for locks in list(_by_path.values()):
        locks.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)

"""What the connections of this process to one database file share."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..errors import LockError
from ..process import activity
from ..process.writequeue import WriteQueue
from .sync import Log, Syncer

#: Seconds between two looks whether another process has set up a new file.
PAUSE = 0.002

_files: dict[Path, File] = {}
_mutex = threading.Lock()

#: Held while a file is opened, and by a fork: the child of one in the middle of it would inherit
#: the lock of ``opening`` and keep every other process out for as long as it lives.
_opening = threading.RLock()
_holder = 0


@dataclass(frozen=True)
class File:
    """One database file: the queue of its writers, and who brings its commits to the disk."""

    path: Path
    queue: WriteQueue
    syncer: Syncer
    log: Log


def file_at(path: Path, describe: Callable[[], str] | None = None) -> File:
    """Return the :class:`File` of a path, the same one for every caller of this process."""
    real = Path(os.path.realpath(path))
    with _mutex:
        file = _files.get(real)
        if file is None:
            queue, log = WriteQueue(real, describe or activity.describe), Log(real)
            file = _files[real] = File(real, queue, Syncer(real, queue, log), log)
        return file


def open_files() -> list[File]:
    """Return the files that this process has used."""
    return list(_files.values())


@contextmanager
def opening(path: Path, timeout: float = 5.0) -> Iterator[None]:
    """Let one process at a time set the journal mode of a new file.

    Several that do it at once get "database is locked" in spite of any timeout
    (tests/processes/test_db_first_open.py).

    :raises LockError: if another one was not done with it within ``timeout`` seconds.
    """
    mutex, deadline = _opening, time.monotonic() + timeout
    if not mutex.acquire(timeout=timeout):
        raise LockError(f"another thread did not end opening a database within {timeout:.1f} s.")
    try:
        run = path.parent / "run"
        try:
            run.mkdir(mode=0o700, exist_ok=True)
            fd = os.open(run / f"{path.name}.open", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            yield  # a folder that cannot be written holds no new file
            return
        try:
            _lock(fd, path, timeout, deadline)
            yield
        finally:
            os.close(fd)
    finally:
        mutex.release()


def hold_openings(deadline: float) -> bool:
    """Let no thread be in, or come into, :func:`opening`: a fork is about to happen.

    :param deadline: on the clock of ``time.monotonic()``. False if it passed in vain.
    """
    global _holder
    if not _opening.acquire(timeout=max(0.0, deadline - time.monotonic())):
        return False
    _holder = threading.get_ident()
    return True


def let_openings_go() -> None:
    """Undo :func:`hold_openings`, in the parent and on the same thread."""
    global _holder
    if _holder == threading.get_ident():
        _holder = 0
        _opening.release()


def _lock(fd: int, path: Path, timeout: float, deadline: float) -> None:
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise LockError(
                    f"another process began to set up {path} and did not end within "
                    f"{timeout:.1f} s. If it is stopped or hangs, end it: fuser "
                    f"{path.parent / 'run' / path.name}.open shows which one it is."
                ) from None
            time.sleep(PAUSE)
        else:
            return


def _after_fork_in_child() -> None:
    global _mutex, _opening, _holder
    _mutex = threading.Lock()
    _opening = threading.RLock()
    _holder = 0
    _files.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)

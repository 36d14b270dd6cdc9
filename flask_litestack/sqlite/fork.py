"""What becomes of open databases in a forked child.

SQLite keeps what it knows about its locks in the memory of the process, and POSIX locks do not
cross a fork. A child that inherits an open connection would take its parent's locks for its own,
even for connections that it opens later: once the parent closes the file, the next process that
closes it deletes the log under the child, and with it rows that were committed
(tests/processes/test_db_fork.py). So a child closes what it inherits before anything else. That
releases no lock but its own.

What is in the middle of a write, or inside SQLite on another thread, cannot be closed: the child
would wait for ever for what that thread has locked inside SQLite. A fork waits for the other
threads to come to rest; where that is in vain, and where the forking thread itself is writing, the
child refuses to open a database.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from typing import Protocol

from ..errors import LockError, TransactionError
from ..process.writequeue import Hold, WriteQueue
from . import driver
from .file import hold_openings, let_openings_go, open_files

log = logging.getLogger(__name__)

#: How long a fork waits for the other threads, in seconds.
PATIENCE = 1.0


class Tracked(Protocol):
    """A connection of the driver's that says whether it can be closed."""

    @property
    def name(self) -> str:
        """The name of its file."""

    @property
    def inside(self) -> bool:
        """Whether a call into SQLite is going on, on whichever thread."""

    def inherit(self) -> None:
        """Become useless: this is a forked child, and the connection its parent's."""


_open: dict[int, weakref.ref[Tracked]] = {}
_inherited: list[Tracked] = []
_turns: list[tuple[WriteQueue, Hold]] = []
_unfinished = ""
_refusal = ""

#: A fork is about to happen; whoever is to begin reading calls wait() first.
pending = False
_over = threading.Event()


def track(connection: Tracked) -> None:
    """Take note of a connection that is about to be opened.

    :raises TransactionError: in a child that cannot open one safely.
    """
    if _refusal:
        raise TransactionError(_refusal)
    key = id(connection)
    _open[key] = weakref.ref(connection, lambda _: _open.pop(key, None))


def forget(connection: Tracked) -> None:
    """Take note of a connection that is closed."""
    _open.pop(id(connection), None)


def wait() -> None:
    """Wait until the fork on another thread has happened."""
    _over.wait(2 * PATIENCE)


def _connections() -> list[Tracked]:
    found = (reference() for reference in list(_open.values()))
    return [connection for connection in found if connection is not None]


def _before() -> None:
    """Wait until no other thread writes or is inside SQLite."""
    global _unfinished, pending
    deadline = time.monotonic() + PATIENCE
    _unfinished = ""
    for file in open_files():
        hold = Hold()
        _turns.append((file.queue, hold))
        try:
            file.queue.acquire(hold, deadline)
        except LockError:  # this thread writes itself, or another one does for long
            _unfinished = f"a write to {file.path}"
    if not hold_openings(deadline):
        _unfinished = "opening a database"
    _over.clear()
    pending = True
    while (reading := _find_inside()) and time.monotonic() < deadline:
        time.sleep(0.0005)
    if reading:
        _unfinished = f"reading {reading}"
    if _unfinished:
        log.warning(
            "a fork in the middle of %s: the child will not be able to open a database. Fork "
            "before, or after the commit.",
            _unfinished,
        )


def _find_inside() -> str:
    return next((connection.name for connection in _connections() if connection.inside), "")


def _after_in_parent() -> None:
    global pending
    pending = False
    _over.set()
    let_openings_go()
    while _turns:
        queue, hold = _turns.pop()
        queue.release(hold)


def _after_in_child() -> None:
    global _refusal, pending, _over
    pending = False
    _over = threading.Event()
    _turns.clear()  # they are of the parent's queues
    inherited = _connections()
    unfinished = _unfinished or _find_inside()
    for connection in inherited:
        if unfinished:
            _inherited.append(connection)  # for ever: the end of its life would close it
        else:
            driver.Connection.close(connection)  # type: ignore[arg-type]
        connection.inherit()
    _open.clear()
    if unfinished:
        _refusal = (
            f"this process was forked in the middle of {unfinished}, so it cannot open a database "
            "without losing rows. Fork before, or after the commit, or start processes by "
            "multiprocessing's 'spawn' or 'forkserver' method."
        )


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child
    )

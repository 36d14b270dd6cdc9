"""A lock that does not stay locked in a forked child for ever."""

from __future__ import annotations

import os
import threading
from weakref import WeakSet

_mutexes: WeakSet[Mutex] = WeakSet()


class Mutex:
    """Like ``threading.Lock``, but free in a forked child, whoever held it in the parent.

    The thread that held it does not exist in the child. Use it only for what is still whole when
    that thread stops half-way, like the making of something that is stored at the end.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        _mutexes.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def _renew(self) -> None:
        self._lock = threading.Lock()


def _after_fork_in_child() -> None:
    for mutex in list(_mutexes):
        mutex._renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)

"""Learns at once when another process of the app ends, and takes its members off the channels."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from ..process.liveness import holder
from .loop import Loop
from .pool import Pool
from .store import Presence, Store

#: Seconds between two looks, where the kernel does not tell.
INTERVAL = 2.0


class Peers:
    """The other processes that serve clients of the app.

    :param own: the name of this process's life.
    :param describe: see :meth:`Backend.describe`.
    :param chores: looks into the store.
    """

    def __init__(
        self,
        loop: Loop,
        store: Store,
        own: str,
        describe: Callable[[str, Presence], str | None],
        chores: Pool,
    ) -> None:
        self._loop = loop
        self._store = store
        self._own = own
        self._describe = describe
        self._chores = chores
        #: Process id -> what tells of its end.
        self._handles: dict[int, int] = {}
        self._looking = False

    def look(self) -> None:
        """Begin to look for dead ones, and to watch the living."""
        self._chores.submit(self._find_dead)

    def look_regularly(self) -> None:
        """Begin to look regularly whether the processes of other members live."""
        if not self._looking:
            self._looking = True
            self._loop.every(INTERVAL, self.look)
            self.look()

    def close(self) -> None:
        """Watch no longer; or close what a parent watched in its child after a fork."""
        for fd in self._handles.values():
            os.close(fd)

    def _find_dead(self) -> None:
        dead, alive = [], []
        for process in self._store.processes():
            pid = holder(self._store.run_path, process)
            if pid is None:
                dead.append(process)
            elif process != self._own and pid:
                alive.append(pid)
        if dead:
            self._store.forget_processes(dead, self._describe)
        self._loop.call(partial(self._watch, alive))

    def _watch(self, pids: list[int]) -> None:
        """Have the kernel tell at once when one of them ends."""
        if not hasattr(os, "pidfd_open"):
            return  # macOS: the regular look must do
        for pid in pids:
            if pid not in self._handles:
                with suppress(OSError):
                    fd = self._handles[pid] = os.pidfd_open(pid)
                    self._loop.watch(fd, partial(self._on_death, pid))

    def _on_death(self, pid: int) -> None:
        fd = self._handles.pop(pid)
        self._loop.unwatch(fd)
        os.close(fd)
        self.look()

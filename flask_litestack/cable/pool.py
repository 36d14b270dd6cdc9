"""A few threads for work that may block."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)


class Pool:
    """Runs functions on up to ``size`` threads, which are started on demand.

    The threads are daemons: a function that never ends does not keep the process from ending.
    """

    def __init__(self, size: int, name: str) -> None:
        self._size = max(1, size)
        self._name = name
        self._work: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._mutex = threading.Lock()
        self._threads = 0
        self._idle = 0

    def submit(self, function: Callable[[], object]) -> None:
        """Run ``function`` soon; an exception is logged."""
        with self._mutex:
            if self._idle > 0:
                self._idle -= 1
            elif self._threads < self._size:
                self._threads += 1
                name = f"{self._name}-{self._threads}"
                threading.Thread(target=self._run, name=name, daemon=True).start()
        self._work.put(function)

    def stop(self) -> None:
        """Let the threads end after what was submitted before."""
        for _ in range(self._threads):
            self._work.put(None)

    def _run(self) -> None:
        while (function := self._work.get()) is not None:
            try:
                function()
            except BaseException:  # sys.exit() in a handler must not cost a thread
                log.exception("%s: an error that its sender did not expect", self._name)
            del function
            with self._mutex:
                # Somebody else's work may be waiting already; then this thread is not idle.
                if self._work.empty():
                    self._idle += 1

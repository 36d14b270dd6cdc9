"""What one thread waits for: descriptors, calls from other threads, and timers."""

from __future__ import annotations

import heapq
import itertools
import logging
import selectors
import socket
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from typing import Protocol

from . import sockets

log = logging.getLogger(__name__)


class HasFileno(Protocol):
    """A socket, or what has one."""

    def fileno(self) -> int:
        """Return the descriptor."""


class Loop:
    """The parts of a loop; the hub puts them together, and takes its turns.

    :raises OSError: if there are no descriptors left.
    """

    def __init__(self) -> None:
        self._timers: list[tuple[float, int, Callable[[], object]]] = []
        self._timer_numbers = itertools.count()
        self._reader = sockets.Reader()

        # Shared with other threads:
        self._calls: deque[Callable[[], object]] = deque()
        self._awake = False
        self._stopping = False

        with ExitStack() as opened:  # all, or none
            self._selector = opened.enter_context(selectors.DefaultSelector())
            self._bell, self._clapper = socket.socketpair()
            for end in (self._bell, self._clapper):
                opened.callback(end.close)
                end.setblocking(False)
            opened.pop_all()
        self.watch(self._bell, self._on_bell)

    # -- for other threads --------------------------------------------------------------------

    def call(self, function: Callable[[], object]) -> None:
        """Have the loop's thread call ``function`` soon."""
        self._calls.append(function)
        self.ring()

    def ring(self) -> None:
        """Have the loop's thread wait no longer."""
        if not self._awake:
            self._awake = True
            sockets.send(self._clapper.fileno(), b"\0")

    def stop(self) -> None:
        """Have the loop end; no lock is taken, so a signal handler may call it."""
        self._stopping = True
        self.ring()

    @property
    def stopping(self) -> bool:
        """Whether it is to end."""
        return self._stopping

    # -- descriptors --------------------------------------------------------------------------

    def watch(
        self,
        file: int | HasFileno,
        ready: object,
        events: int = selectors.EVENT_READ,
        before: int = 0,
    ) -> None:
        """Watch for events of a descriptor; :meth:`wait` then returns ``ready``.

        :param events: as in the module ``selectors``; 0 for none any more.
        :param before: what was watched for until now.
        """
        if not before:
            self._selector.register(file, events, ready)
        elif not events:
            self._selector.unregister(file)
        else:
            self._selector.modify(file, events, ready)

    def unwatch(self, file: int | HasFileno) -> None:
        """Watch a descriptor no longer; before it is closed."""
        self._selector.unregister(file)

    def wait(self, seconds: float) -> list[tuple[selectors.SelectorKey, int]]:
        """Return what is ready, as ``key.data``, and for which events."""
        return self._selector.select(seconds)

    def _on_bell(self) -> None:
        self._reader.read(self._bell.fileno())
        # From here on a new call rings again.
        self._awake = False

    # -- calls --------------------------------------------------------------------------------

    @property
    def called(self) -> bool:
        """Whether there are calls to run."""
        return bool(self._calls)

    def run_calls(self) -> None:
        """Run what other threads want to be called."""
        for _ in range(len(self._calls)):
            try:
                self._calls.popleft()()
            except Exception:
                log.exception("the cable's hub failed at a call; it goes on")

    # -- timers -------------------------------------------------------------------------------

    def every(self, seconds: float, function: Callable[[], object]) -> None:
        """Call ``function`` regularly, for the first time after that many seconds."""

        def again() -> None:
            self.later(seconds, again)
            function()

        self.later(seconds, again)

    def later(self, seconds: float, function: Callable[[], object]) -> None:
        """Call ``function`` once."""
        due = time.monotonic() + seconds
        heapq.heappush(self._timers, (due, next(self._timer_numbers), function))

    def until_next_timer(self) -> float:
        """Return the seconds until the next timer is due; there must be one."""
        return max(0.0, self._timers[0][0] - time.monotonic())

    def run_timers(self) -> None:
        """Call what is due; there must be a timer that is not."""
        now = time.monotonic()
        while self._timers[0][0] <= now:
            heapq.heappop(self._timers)[2]()

    # -- the end ------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the loop's own descriptors, and those of a parent in its child after a fork."""
        self._selector.close()
        self._bell.close()
        self._clapper.close()

"""Follows the log: one reader for each process, woken by a datagram, or looking by itself.

A wake-up costs the sender up to 100 us when it takes the receiver out of its sleep. So who gets
many of them hides its mailbox for a while and looks into the log every millisecond instead, until
there is nothing new any more.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from ..process.wakeup import Mailbox
from . import sockets
from .store import RUN_KIND, Row, Store

#: As many wake-ups within so many seconds, and the log is looked into every POLL seconds ...
MANY = 8
WINDOW = 0.01
POLL = 0.001

#: ... until it was found empty this often in a row.
PATIENCE = 10


class Follower:
    """Reads what is appended to a log from now on."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.mailbox = Mailbox(store.run_path, RUN_KIND)
        self._reader = sockets.Reader()
        self._polling = False
        self._empty = 0
        self._wakeups = 0
        self._window = 0.0
        #: Whether there may be something new.
        self.news = False
        #: The id of the last entry that was read.
        self.position = store.last_id()

    def fileno(self) -> int:
        """Return the descriptor that is readable after a wake-up."""
        return self.mailbox.fileno()

    def wait_at_most(self, seconds: float) -> float:
        """Shorten a wait for the descriptor to what is allowed now."""
        if self._polling:
            self.news = True
            return min(seconds, POLL)
        return 0.0 if self.news else seconds

    def wake(self) -> None:
        """Take the wake-ups; call it when the descriptor is readable."""
        # One of them; if there are more, the descriptor stays readable, which costs less than to
        # ask each time.
        self._reader.read(self.mailbox.fileno())
        self.news = True
        now = time.monotonic()
        if now - self._window > WINDOW:
            self._window = now
            self._wakeups = 0
        self._wakeups += 1
        if self._wakeups == MANY and not self._polling:
            self._polling = True
            self._empty = 0
            self.mailbox.hide()
            while self._reader.read(self.mailbox.fileno()):
                pass

    def read(self) -> Sequence[Row]:
        """Return the next entries, and leave the position to the caller; call again if any."""
        self.news = False
        rows = self._store.after(self.position)
        if rows:
            self._empty = 0
            self.news = True  # there may be more
        elif self._polling:
            self._empty += 1
            if self._empty == PATIENCE:
                self._polling = False
                self.mailbox.show()
                self.news = True  # what came before the mailbox was back
        return rows

    def close(self) -> None:
        """Stop being woken."""
        self.mailbox.close()

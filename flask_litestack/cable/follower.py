"""Follows the log: one reader for each process, woken by a datagram, or looking by itself.

The datagram of a small message holds the message. If its id is the next one, the file need not be
read; ids without gaps tell. Otherwise, or if several datagrams came (so that one may have been
dropped), the file is read.

A wake-up costs the sender up to 100 us when it takes the receiver out of its sleep. So who gets
many of them hides its mailbox for a while and looks into the log every millisecond instead, until
there is nothing new any more.
"""

from __future__ import annotations

import json
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
        self._received: list[Row] = []
        self._unread = False
        #: The id of the last entry that was read.
        try:
            self.position = store.last_id()
        except BaseException:
            self.mailbox.close()
            raise

    @property
    def news(self) -> bool:
        """Whether there may be something new."""
        return self._unread or bool(self._received)

    def look(self) -> None:
        """Have the next read look into the file."""
        self._unread = True

    def fileno(self) -> int:
        """Return the descriptor that is readable after a wake-up."""
        return self.mailbox.fileno()

    def wait_at_most(self, seconds: float) -> float:
        """Shorten a wait for the descriptor to what is allowed now."""
        if self._polling:
            self._unread = True
            return min(seconds, POLL)
        return 0.0 if self.news else seconds

    def wake(self) -> None:
        """Take the wake-ups; call it when the descriptor is readable."""
        notes = []
        while note := self._reader.read(self.mailbox.fileno()):
            notes.append(note)
        if len(notes) == 1 and notes[0].startswith(b"[") and len(self._received) < MANY:
            self._received.append(Row(*json.loads(notes[0])))
        else:
            self._unread = True
        now = time.monotonic()
        if now - self._window > WINDOW:
            self._window = now
            self._wakeups = 0
        self._wakeups += 1
        if self._wakeups == MANY and not self._polling:
            self._polling = True
            self._empty = 0
            self.mailbox.hide()

    def read(self) -> Sequence[Row]:
        """Return the next entries, and leave the position to the caller; call again if any."""
        rows = self._take_received()
        if rows:
            return rows
        self._unread = False
        rows = self._store.after(self.position)
        if rows:
            self._empty = 0
            self._unread = True  # there may be more
        elif self._polling:
            self._empty += 1
            if self._empty == PATIENCE:
                self._polling = False
                self.mailbox.show()
                self._unread = True  # what came before the mailbox was back
        return rows

    def _take_received(self) -> Sequence[Row]:
        """Return what follows the position without a gap."""
        rows: list[Row] = []
        for row in self._received:
            if row.id == self.position + len(rows) + 1:
                rows.append(row)
            elif row.id > self.position:
                self._unread = True
        self._received.clear()
        return rows

    def close(self) -> None:
        """Stop being woken."""
        self.mailbox.close()

"""Tells the other processes, and the subscribers, who is present here."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial

from .clients import Topic
from .loop import Loop
from .peers import Peers
from .pool import Pool
from .presence import Members
from .store import Presence, Store

#: Seconds between two reports of who is present; the first comes sooner.
PRESENCE_INTERVAL = 0.5
PRESENCE_DELAY = 0.05

#: Bytes a second of reports about one channel, beyond which they come less often: the log, of
#: 32 MiB by default, is there for messages.
PRESENCE_RATE = 8 * 1024


class Reports:
    """What this process tells of its clients.

    :param own: the name of this process's life.
    :param describe: see :meth:`Backend.describe`.
    :param topics: the channels with subscribers.
    :param chores: writes into the store.
    """

    def __init__(
        self,
        loop: Loop,
        store: Store,
        own: str,
        describe: Callable[[str, Presence], str | None],
        topics: Mapping[str, Topic],
        peers: Peers,
        chores: Pool,
    ) -> None:
        self._loop = loop
        self._store = store
        self._own = own
        self._describe = describe
        self._topics = topics
        self._peers = peers
        self._chores = chores
        self._members = Members()
        self._reporting = False
        self._reported_at = 0.0
        self._noted: tuple[int, int] | None = None

    def join(self, channel: str, user: str) -> None:
        """Count a subscriber among the members of a channel."""
        self._members.join(channel, user)
        self._report_soon()

    def leave(self, channel: str, user: str) -> None:
        """Count a subscriber no longer, if it was."""
        self._members.leave(channel, user)
        if self._members.changed:
            self._report_soon()

    def note_status(self, clients: int, channels: int) -> None:
        """Note how many there are, unless it was noted already."""
        now = (clients, channels)
        if now != self._noted:
            self._noted = now
            self._chores.submit(partial(self._store.note_hub, self._own, *now))

    def repeat_all(self) -> None:
        """Tell everything anew: what was said before may be gone."""
        self._noted = None
        self._members.change_all()
        if self._members.changed:
            self._report_soon()

    def _report_soon(self) -> None:
        """Tell the other processes, and the subscribers, but not for each of a thousand joins."""
        if self._reporting:
            return
        self._reporting = True
        since = time.monotonic() - self._reported_at
        self._loop.later(max(PRESENCE_DELAY, PRESENCE_INTERVAL - since), self._report)

    def _report(self) -> None:
        now = self._reported_at = time.monotonic()
        changes = self._members.take_changes(partial(self._may_report, now))

        def done(failed: bool) -> None:
            self._reporting = False
            if failed:
                self._members.put_back(changes)
            if self._members.changed:
                self._report_soon()

        def report() -> None:
            failed = True
            try:
                self._store.change_presence(self._own, changes, self._describe)
                failed = False
            finally:
                self._loop.call(partial(done, failed))

        if changes:
            self._chores.submit(report)
        else:
            done(failed=False)
        self._peers.look_regularly()

    def _may_report(self, now: float, channel: str) -> bool:
        topic = self._topics.get(channel)
        if topic is None:
            return True
        size = 0 if topic.news is None else len(topic.news)
        if now - topic.reported_at < size / PRESENCE_RATE:
            return False
        topic.reported_at = now
        return True

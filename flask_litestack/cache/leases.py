"""What a context may store: nothing that is older than the last delete.

A reader misses, computes from rows it has read, a writer commits and deletes the key, the reader
then stores the old value: deleting on commit alone serves stale pages. So a miss gives a *lease*,
the time since which the context may have read what it computes from, and a value is refused if
its key was deleted after its lease began.

A template reads its rows before it comes to the fragment that misses, so a lease is as old as the
app context. In a context of more than ``LONG`` seconds (a shell, a script, a long job) it is as
old as the miss: there, every key that anyone deleted since would be refused for ever. What a
context deletes itself it may store afterwards: it knows of that change.

Times are ``time.monotonic_ns()``, which all processes of a machine share until it is restarted.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from flask import Flask, appcontext_pushed, g, has_app_context

#: Seconds after which the leases of a context are no longer as old as the context.
LONG = 60.0

#: Misses, and own changes, that a context remembers.
REMEMBERED = 10_000

_BEGAN = "_litestack_context_began"
_NEVER = -(1 << 62)


#: The ids and keys of entries to delete; None for all.
Wanted = list[tuple[int, bytes]] | None


class Pending(Protocol):
    """A delete that waits for a commit; it is dropped by a rollback, which frees it."""

    wanted: Wanted


P = TypeVar("P", bound=Pending)


class Context(Generic[P]):
    """What one app context, or one thread without any, did with one cache.

    :param waiting: where the ids of deletes that wait for a commit are kept, of all contexts.
    """

    def __init__(self, began: int, waiting: set[int]) -> None:
        self._began = began
        self._missed: dict[int, int] = {}
        self._own: dict[int, int] = {}
        self._cleared = 0
        self._everywhere = waiting
        self._waiting: dict[int, weakref.ref[P]] = {}
        self._hidden: dict[int, int] = {}  # by how many deletes
        self._all_hidden = 0

    def missed(self, number: int) -> None:
        """Hand out a lease."""
        missed = self._missed
        missed[number] = self._lease_from(time.monotonic_ns())
        if len(missed) > REMEMBERED:
            del missed[next(iter(missed))]

    def lease(self, number: int, since: int = 0) -> int | None:
        """Take the lease of an entry back: the time it began, or None if there was no miss.

        :param since: when the computation of the value began, if it is known to be computed.
        """
        lease = self._missed.pop(number, None)
        if lease is None:
            if not since:
                return None
            lease = self._lease_from(since)
        # What this context itself deleted or set, it does not compute from older rows.
        return max(lease, self._own.get(number, lease), self._cleared)

    def changed(self, number: int, when: int) -> None:
        """Note a set without a lease by this context."""
        if when - self._began < LONG * 1e9:
            self._remember(number, when)

    def deleted(self, wanted: Wanted, when: int) -> None:
        """Note a delete by this context."""
        if wanted is None:
            self._cleared = when + 1
        else:
            for number, _ in wanted:
                self._remember(number, when)

    def hide(self, pending: P) -> Callable[[], object]:
        """Let what ``pending`` will delete be missing in this context.

        For as long as it waits: until it is freed, or what is returned here is called.
        """
        wanted, name = pending.wanted, id(pending)
        if wanted is None:
            self._all_hidden += 1
        else:
            for number, _ in wanted:
                self._hidden[number] = self._hidden.get(number, 0) + 1
        self._waiting[name] = weakref.ref(pending)
        self._everywhere.add(name)
        show = weakref.finalize(pending, self._show, name, wanted)
        show.atexit = False
        return show

    def _show(self, name: int, wanted: Wanted) -> None:
        if wanted is None:
            self._all_hidden -= 1
        else:
            for number, _ in wanted:
                self._hidden[number] -= 1
                if not self._hidden[number]:
                    del self._hidden[number]
        del self._waiting[name]
        self._everywhere.discard(name)

    def hides(self, number: int) -> bool:
        """Whether this context has deleted the entry in a transaction that is still open."""
        return number in self._hidden or self._all_hidden > 0

    def waiting(self) -> list[P]:
        """Return the deletes of this context that wait for the commit."""
        found = (reference() for reference in list(self._waiting.values()))
        return [pending for pending in found if pending is not None]

    def _remember(self, number: int, when: int) -> None:
        self._own[number] = when + 1
        if len(self._own) > REMEMBERED:
            self._began = _NEVER  # it is at work on something big: a long one before its time
            del self._own[next(iter(self._own))]

    def _lease_from(self, now: int) -> int:
        return self._began if now - self._began < LONG * 1e9 else now


class Contexts(Generic[P]):
    """The present :class:`Context` of one cache."""

    def __init__(self) -> None:
        #: Not empty while a delete of any context waits for a commit.
        self.waiting: set[int] = set()
        self._name = f"_litestack_cache_{id(self)}"
        self._threads = threading.local()

    def current(self) -> Context[P]:
        """Return the context of this app context, or of this thread if there is none."""
        if has_app_context():
            context: Context[P] | None = g.get(self._name)
            if context is None:
                context = Context(g.get(_BEGAN) or time.monotonic_ns(), self.waiting)
                setattr(g, self._name, context)
            return context
        context = getattr(self._threads, "context", None)
        if context is None:
            context = self._threads.context = Context(_NEVER, self.waiting)
        return context


def watch_contexts(app: Flask) -> None:
    """Note when each app context of the app begins."""
    appcontext_pushed.connect(_note_beginning, app)


def _note_beginning(app: Flask, **_: object) -> None:
    setattr(g, _BEGAN, time.monotonic_ns())

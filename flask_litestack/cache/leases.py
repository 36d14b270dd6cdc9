"""What a context may store: nothing that is older than the last delete.

A reader misses, computes from rows it has read, a writer commits and deletes the key, the reader
then stores the old value: deleting on commit alone serves stale pages. So a miss gives a *lease*,
the time since which the context may have read what it computes from, and a value is refused if
its key was deleted after its lease began.

A template reads its rows before it comes to the fragment that misses, so a lease is as old as the
app context. In a context of more than ``LONG`` seconds (a shell, a script, a long job) it is as
old as the miss: there, every key that anyone deleted since would be refused for ever.

Times are ``time.monotonic_ns()``, which all processes of a machine share until it is restarted.
"""

from __future__ import annotations

import threading
import time
import weakref
from typing import Protocol

from flask import Flask, appcontext_pushed, g, has_app_context

#: Seconds after which the leases of a context are no longer as old as the context.
LONG = 60.0

#: Misses, and own changes, that a context remembers.
REMEMBERED = 10_000

_BEGAN = "_litestack_context_began"
_NEVER = -(1 << 62)


class Pending(Protocol):
    """A delete that waits for a commit; it is dropped by a rollback, which frees it."""

    def hides(self, number: int) -> bool: ...


class Context:
    """What one app context, or one thread without any, did with one cache."""

    def __init__(self, began: int) -> None:
        self._began = began
        self._missed: dict[int, int] = {}
        self._own: dict[int, int] = {}
        self._pending: list[weakref.ref[Pending]] = []

    def missed(self, number: int) -> None:
        """Hand out a lease."""
        missed = self._missed
        missed[number] = self._lease_from(time.monotonic_ns(), number)
        if len(missed) > REMEMBERED:
            del missed[next(iter(missed))]

    def lease(self, number: int, since: int = 0) -> int | None:
        """Take the lease of an entry back: the time it began, or None if there was no miss.

        :param since: when the computation of the value began, if it is known to be computed.
        """
        lease = self._missed.pop(number, None)
        if lease is None and since:
            return self._lease_from(since, number)
        return lease

    def changed(self, number: int, when: int) -> None:
        """Note a set without a lease, or a delete, by this context."""
        if when - self._began < LONG * 1e9:
            self._own[number] = when + 1
            if len(self._own) > REMEMBERED:
                self._began = _NEVER  # it is at work on something big: a long one before its time
                self._own.clear()

    def hide(self, pending: Pending) -> None:
        """Let what ``pending`` will delete be missing in this context, for as long as it waits."""
        self._pending.append(weakref.ref(pending))

    def hides(self, number: int) -> bool:
        """Whether this context has deleted the entry in a transaction that is still open."""
        hidden = False
        alive = []
        for reference in self._pending:
            pending = reference()
            if pending is not None:
                alive.append(reference)
                hidden = hidden or pending.hides(number)
        self._pending = alive
        return hidden

    def _lease_from(self, now: int, number: int) -> int:
        began = self._began if now - self._began < LONG * 1e9 else now
        # What this context itself deleted or set, it does not compute from older rows.
        return max(began, self._own.get(number, 0))


class Contexts:
    """The present :class:`Context` of one cache."""

    def __init__(self) -> None:
        self._name = f"_litestack_cache_{id(self)}"
        self._threads = threading.local()

    def current(self) -> Context:
        """Return the context of this app context, or of this thread if there is none."""
        if has_app_context():
            context: Context | None = g.get(self._name)
            if context is None:
                context = Context(g.get(_BEGAN) or time.monotonic_ns())
                setattr(g, self._name, context)
            return context
        context = getattr(self._threads, "context", None)
        if context is None:
            context = self._threads.context = Context(_NEVER)
        return context


def watch_contexts(app: Flask) -> None:
    """Note when each app context of the app begins."""
    appcontext_pushed.connect(_note_beginning, app)


def _note_beginning(app: Flask, **_: object) -> None:
    setattr(g, _BEGAN, time.monotonic_ns())

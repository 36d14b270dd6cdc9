"""What this thread is doing, in a few words, for messages about who holds a lock."""

from __future__ import annotations

import threading
from contextvars import ContextVar

#: Set by whoever runs a piece of work, e.g. "job 17 send_mail". Empty: unknown.
current: ContextVar[str] = ContextVar("flask_litestack_activity", default="")


def describe() -> str:
    """Return the activity of the calling thread, or the thread's name."""
    return current.get() or f"thread {threading.current_thread().name}"

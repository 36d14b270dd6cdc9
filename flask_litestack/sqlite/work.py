"""What is to be done around a commit, and is dropped with its savepoint or its transaction."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import NamedTuple

log = logging.getLogger(__name__)

_committed = threading.local()


def is_after_commit() -> bool:
    """Tell whether the calling code is work that runs after a commit."""
    return bool(getattr(_committed, "depth", 0))


class Work(NamedTuple):
    """What is to be done around a commit."""

    function: Callable[[], object]
    before: Callable[[], object] | None
    failed: Callable[[], object] | None


class WorkList:
    """The work that waits for the end of a connection's transaction."""

    def __init__(self) -> None:
        #: In order; that of a savepoint comes after what there was when it was opened. These are
        #: attributes, and not behind methods, because every commit looks at them.
        self.works: list[Work] = []
        #: The name of each open savepoint, and how many works there were before it.
        self.savepoints: list[tuple[str, int]] = []

    def open(self, name: str) -> None:
        """Take note of a new savepoint: what is added from here on belongs to it."""
        self.savepoints.append((name, len(self.works)))

    def release(self, name: str) -> bool:
        """Leave the work of a savepoint to the one around it; False if there is none."""
        level = self._find(name)
        if level is None:
            return False
        del self.savepoints[level:]
        return True

    def roll_back_to(self, name: str) -> None:
        """Drop the work of a savepoint, which stays open, and of those inside it."""
        level = self._find(name)
        if level is not None:
            del self.works[self.savepoints[level][1] :]
            del self.savepoints[level + 1 :]

    def drop(self) -> None:
        """Drop everything."""
        self.works = []
        self.savepoints = []

    def committed(self) -> None:
        """Do all work that was to be done after the commit; log what fails."""
        works = self.works
        self.drop()
        run_after_commit(work.function for work in works)

    def rolled_back(self) -> None:
        """Do what was to be done if there was no commit; log what fails."""
        works = self.works
        self.drop()
        run_after_rollback(works)

    def _find(self, name: str) -> int | None:
        """Return the index of the innermost savepoint of that name."""
        for level in reversed(range(len(self.savepoints))):
            if self.savepoints[level][0] == name:
                return level
        return None


def run_after_commit(functions: Iterable[Callable[[], object]]) -> None:
    """Call functions that waited for a commit; log their errors, raise an interrupt at the end."""
    waiting = deque(functions)
    _committed.depth = getattr(_committed, "depth", 0) + 1
    interrupted: BaseException | None = None
    try:
        while waiting:
            try:
                while waiting:
                    _run_logged(waiting.popleft(), "commit")
            except BaseException as error:
                interrupted = error  # Ctrl-C, say: not before the rest is done
    finally:
        _committed.depth -= 1
    if interrupted is not None:
        raise interrupted


def run_after_rollback(works: Iterable[Work]) -> None:
    """Call what works have for the case that there is no commit; log errors."""
    for failed in [work.failed for work in works if work.failed is not None]:
        _run_logged(failed, "rollback")


def _run_logged(function: Callable[[], object], after: str) -> None:
    try:
        function()
    except Exception:
        # The commit stands; an error here must not look like a failed commit.
        log.exception("work after the %s failed", after)

"""Wakes a thread that waits in poll(), from another thread or a signal handler."""

from __future__ import annotations

import os
from contextlib import suppress


class Bell:
    """A pipe to this process itself."""

    def __init__(self) -> None:
        self._ear, self._mouth = os.pipe()
        os.set_blocking(self._ear, False)
        os.set_blocking(self._mouth, False)

    def fileno(self) -> int:
        """Return the descriptor that is readable once the bell has rung."""
        return self._ear

    def ring(self) -> None:
        """Wake whoever waits. Safe in a signal handler, and after close()."""
        with suppress(OSError):  # full: it rings already
            os.write(self._mouth, b"\0")

    def quiet(self) -> None:
        """Forget the rings so far."""
        with suppress(BlockingIOError):
            while len(os.read(self._ear, 4096)) == 4096:
                pass

    def close(self) -> None:
        """Close the pipe."""
        os.close(self._ear)
        os.close(self._mouth)
        self._ear = self._mouth = -1

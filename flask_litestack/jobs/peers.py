"""The other worker processes of this box: notices at once when one of them dies."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from ..process.liveness import holder, living


class Peers:
    """Holds a descriptor for each other process of a kind that becomes readable when it exits.

    Where the kernel has no such thing (pidfd is Linux's), there are none, and a death is noticed
    by the next look at the locks.
    """

    def __init__(self, run_path: Path, kind: str, me: str) -> None:
        self._run_path = run_path
        self._kind = kind
        self._me = me
        self._fds: dict[str, int] = {}

    @property
    def descriptors(self) -> list[int]:
        """What to watch."""
        return list(self._fds.values())

    def refresh(self) -> None:
        """Look who is there now."""
        names = set(living(self._run_path, self._kind)) - {self._me}
        for name in self._fds.keys() - names:
            os.close(self._fds.pop(name))
        for name in names - self._fds.keys():
            self._watch(name)

    def close(self) -> None:
        """Stop watching."""
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()

    def _watch(self, name: str) -> None:
        pid = holder(self._run_path, name)
        if not pid or not hasattr(os, "pidfd_open"):
            return
        with suppress(OSError):  # it is gone, or the sandbox does not allow this
            fd = os.pidfd_open(pid)
            # The id may have been given to another process between the two looks.
            if holder(self._run_path, name) == pid:
                self._fds[name] = fd
            else:
                os.close(fd)

"""Who is alive: each process holds a lock that the kernel frees when it dies.

The lock is a POSIX record lock on a file of the process's own in ``run/``. The kernel drops it
with the process, at once and whatever killed it, and keeps it while the process is stopped, so
there is no heartbeat and no false verdict. A forked child does not inherit it (a ``flock``
would be inherited, and a child that outlives a killed worker would keep it "alive").

The trap of record locks: closing *any* descriptor of the file in the process that holds the
lock drops it. So this module never opens a file that this process holds.
"""

from __future__ import annotations

import os
import secrets
import struct
import sys
from contextlib import suppress
from pathlib import Path

_SUFFIX = ".life"


class Life:
    """The proof that this process is alive, until :meth:`close` or its death.

    :param run_path: the folder of the lock files, made (mode 0700) if it is missing.
    :param kind: what the process is, e.g. "worker"; no "-" in it.
    """

    def __init__(self, run_path: Path, kind: str) -> None:
        import fcntl  # not on Windows, where everything but this class works

        if "-" in kind:
            raise ValueError(f"the kind of a life has no '-' in it: {kind!r}")
        self.name = f"{kind}-{secrets.token_hex(8)}"
        self._pid = os.getpid()
        self._path = run_path / (self.name + _SUFFIX)
        run_path.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Locked under another name first: an unlocked life would be taken for a dead one.
        newborn = self._path.with_suffix(".tmp")
        self._fd = os.open(newborn, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _own[self._path] = self._fd
        os.rename(newborn, self._path)

    def close(self) -> None:
        """Say that this process is no longer at work. Safe to call twice, and in a child."""
        if self._pid != os.getpid() or _own.pop(self._path, None) is None:
            return
        with suppress(FileNotFoundError):
            os.unlink(self._path)
        os.close(self._fd)


def is_alive(run_path: Path, name: str) -> bool:
    """Tell whether the process with the life of that name lives; a dead one's file is removed."""
    return holder(run_path, name) is not None


def holder(run_path: Path, name: str) -> int | None:
    """Return the pid of the process that holds the life of that name, or None if it is dead.

    0 stands for a living process of another pid namespace (another container).
    """
    path = run_path / (name + _SUFFIX)
    if path in _own:
        return os.getpid()
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        pid = _lock_holder(fd)
    finally:
        os.close(fd)
    if pid is None:
        with suppress(FileNotFoundError):
            os.unlink(path)
    return pid


def living(run_path: Path, kind: str) -> list[str]:
    """Return the names of the living processes of a kind, sorted."""
    try:
        files = os.listdir(run_path)
    except FileNotFoundError:
        return []
    names = [file.removesuffix(_SUFFIX) for file in files if file.endswith(_SUFFIX)]
    return sorted(n for n in names if n.partition("-")[0] == kind and is_alive(run_path, n))


#: struct flock: l_type, l_whence, l_start, l_len, l_pid on Linux; start, len, pid, type, whence
#: on macOS.
_FLOCK = struct.Struct("@hhqqi4x" if sys.platform == "linux" else "@qqihh")


def _lock_holder(fd: int) -> int | None:
    """Ask the kernel who holds the lock, without taking it for a moment (F_GETLK)."""
    import fcntl

    if sys.platform == "linux":
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_GETLK, asked))
    else:
        asked = _FLOCK.pack(0, 0, 0, fcntl.F_WRLCK, os.SEEK_SET)
        _, _, pid, kind, _ = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_GETLK, asked))
    return None if kind == fcntl.F_UNLCK else max(0, int(pid))


#: The lives of this process: path -> descriptor.
_own: dict[Path, int] = {}


def _forget_inherited() -> None:
    # In the child these descriptors hold no lock, and closing them releases none of the parent's.
    for fd in _own.values():
        os.close(fd)
    _own.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_inherited)

"""Waking the processes of this box: one byte to a unix datagram socket in ``run/``.

A wake-up is a hint. It may be lost (a listener that is just starting, a full socket queue), so
whoever listens also looks at the file from time to time, and once more after it has said that
it is ready.
"""

from __future__ import annotations

import logging
import os
import random
import secrets
import select
import socket
import sys
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

log = logging.getLogger(__name__)

_LISTENING = ".sock"
_HIDDEN = ".busy"

#: sockaddr_un holds 108 bytes on Linux and 104 on macOS, with the final zero.
_LONGEST_PATH = 100

#: Nanoseconds: twice the coarsest tick of a kernel.
_TICK = 20_000_000

_HAS_UNIX_SOCKETS = hasattr(socket, "AF_UNIX")

#: Seconds between two looks of a process that nobody can wake.
_POLL = 0.05


class Mailbox:
    """A socket of this process, through which others wake it.

    :param run_path: the folder of the sockets, made (mode 0700) if it is missing.
    :param kind: who listens, e.g. "jobs"; no "-" in it.

    Where there are no unix sockets, or the path is too long for them, nobody can wake the
    mailbox, and :meth:`wait` returns True every 50 ms so that its owner looks for itself.
    """

    def __init__(self, run_path: Path, kind: str) -> None:
        if "-" in kind:
            raise ValueError(f"the kind of a mailbox has no '-' in it: {kind!r}")
        self._run_path = run_path
        self._name = f"{kind}-{secrets.token_hex(8)}"
        self._pid = os.getpid()
        self._hidden = False
        run_path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._peer: socket.socket | None = None
        if _HAS_UNIX_SOCKETS and _fits(run_path, self._name):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            with _address(run_path, self.socket_name) as address:
                self._socket.bind(address)
        else:
            self._socket, self._peer = socket.socketpair()
        self._socket.setblocking(False)
        _remove_hidden_dead(run_path, kind)
        _mailboxes.add(self)

    @property
    def socket_name(self) -> str:
        """The name of the socket's file, while it is not hidden."""
        return self._name + _LISTENING

    def fileno(self) -> int:
        """Return the descriptor that is readable once somebody has called."""
        return self._socket.fileno()

    def wait(self, timeout: float) -> bool:
        """Wait for a wake-up, at most ``timeout`` seconds; tell whether to look now."""
        if self._peer is not None:
            time.sleep(min(timeout, _POLL))
            return True
        waiting = select.poll()  # not select(), which knows no descriptors above 1023
        waiting.register(self._socket, select.POLLIN)
        ready = waiting.poll(max(0.0, timeout) * 1000)
        self.drain()
        return bool(ready)

    def drain(self) -> list[bytes]:
        """Take the wake-ups so far, and return the beginning of the note that came with each.

        Call it before looking for work, never after.
        """
        notes = []
        with suppress(BlockingIOError):
            while note := self._socket.recv(64):
                notes.append(note)
        return notes

    def hide(self) -> None:
        """Stop being woken, cheaply: for a process that is busy and will look by itself."""
        if not self._hidden and self._peer is None:
            self._rename(_LISTENING, _HIDDEN)
        self._hidden = True

    def show(self) -> None:
        """Be woken again. Look for work once more before waiting."""
        if self._hidden and self._peer is None:
            self._rename(_HIDDEN, _LISTENING)
        self._hidden = False

    def close(self) -> None:
        """Leave the folder. In a forked child only the child's descriptor is closed."""
        self._socket.close()
        if self._peer is not None:
            self._peer.close()
        if self._pid == os.getpid():
            suffix = _HIDDEN if self._hidden else _LISTENING
            with suppress(FileNotFoundError):
                os.unlink(self._run_path / (self._name + suffix))

    def _rename(self, old: str, new: str) -> None:
        # FileNotFoundError: somebody emptied the folder; the slow look for work remains.
        with suppress(FileNotFoundError):
            os.rename(self._run_path / (self._name + old), self._run_path / (self._name + new))


def wake(
    run_path: Path,
    kind: str,
    *,
    limit: int | None = None,
    besides: Mailbox | None = None,
    note: bytes = b"\0",
) -> int:
    """Wake the mailboxes of a kind, or ``limit`` of them picked at random, but not ``besides``.

    :param note: what the listener can read from its socket; it is lost with the wake-up.

    Return how many are awake now. A socket nobody listens to any more is removed; one that
    belongs to another user is passed over. Where nobody can be woken, for want of a descriptor
    say, that is logged: what was to be looked at is stored, and an error would say that it is not.
    """
    try:
        return _wake(run_path, kind, limit, None if besides is None else besides.socket_name, note)
    except OSError as error:
        log.warning("cannot wake the listeners to %s: %s", kind, error)
        return 0


def _wake(run_path: Path, kind: str, limit: int | None, besides: str | None, note: bytes) -> int:
    names = [name for name in _listening(os.fspath(run_path), kind) if name != besides]
    if limit is not None and len(names) > limit:
        names = random.sample(names, len(names))
    woken = 0
    for name in names:
        if woken == limit:
            break
        with _address(run_path, name) as address:
            try:
                _sender().sendto(note, address)
            except BlockingIOError:  # its queue is full: it has been woken already
                pass
            except ConnectionRefusedError:
                _remove(run_path / name)
                continue
            except (FileNotFoundError, PermissionError):
                continue
        woken += 1
    return woken


def _listening(folder: str, kind: str) -> list[str]:
    """Return the sockets of a kind, from memory if the folder has not changed since."""
    try:
        changed = os.stat(folder).st_mtime_ns
        known = _listings.get((folder, kind))
        if known is not None and known[0] == changed:
            return known[1]
        began = time.time_ns()
        names = [name for name in os.listdir(folder) if _is(name, kind, _LISTENING)]
    except FileNotFoundError:
        return []
    # A second change within a tick of the kernel's clock would not show in the folder's time.
    if changed < began - _TICK:
        _listings[folder, kind] = (changed, names)
    return names


#: (folder, kind) -> the folder's time of change, and the sockets then.
_listings: dict[tuple[str, str], tuple[int, list[str]]] = {}


def _is(name: str, kind: str, suffix: str) -> bool:
    return name.endswith(suffix) and name.partition("-")[0] == kind


def _remove(path: Path) -> None:
    with suppress(FileNotFoundError, PermissionError):
        path.unlink()


def _remove_hidden_dead(run_path: Path, kind: str) -> None:
    """Remove what processes killed while they were busy have left; no sender meets those."""
    if not _HAS_UNIX_SOCKETS:
        return
    for name in os.listdir(run_path):
        if not _is(name, kind, _HIDDEN):
            continue
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe,
            _address(run_path, name) as address,
        ):
            try:
                probe.connect(address)
            except ConnectionRefusedError:
                _remove(run_path / name)
            except (FileNotFoundError, PermissionError):
                pass


def _fits(run_path: Path, name: str) -> bool:
    return sys.platform == "linux" or _length(run_path, name + _LISTENING) <= _LONGEST_PATH


def _length(run_path: Path, name: str) -> int:
    return len(os.fsencode(run_path)) + 1 + len(os.fsencode(name))


@contextmanager
def _address(run_path: Path, name: str) -> Iterator[str]:
    """Yield a path of the socket that is short enough for a socket address."""
    if _length(run_path, name) <= _LONGEST_PATH:
        yield f"{run_path}/{name}"
        return
    folder = os.open(run_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{name}"
    finally:
        os.close(folder)


_senders: list[socket.socket] = []


def _sender() -> socket.socket:
    """Return the process's one unbound socket; threads and forked children may share it."""
    if not _senders:
        sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        sender.setblocking(False)
        _senders.append(sender)
    return _senders[0]


_mailboxes: weakref.WeakSet[Mailbox] = weakref.WeakSet()


def _close_inherited() -> None:
    # A child that kept its dead parent's socket open would swallow the wake-ups of the living.
    for mailbox in list(_mailboxes):
        mailbox.close()
    _mailboxes.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_inherited)

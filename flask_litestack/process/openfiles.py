"""Which processes of this box have files of a folder open, as the kernel tells it in /proc."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")

_DELETED = " (deleted)"


@dataclass(frozen=True)
class Process:
    """A process that has files of the folder open."""

    pid: int
    command: str
    stopped: bool
    files: frozenset[str] = frozenset()
    """Names below the folder."""
    deleted: frozenset[str] = frozenset()
    """Names of files that are open but no longer there: what is written to them is lost."""


def processes_using(folder: Path) -> list[Process]:
    """List the processes with files of the folder open, by pid.

    Another user's processes are seen by root only. Empty where there is no /proc.
    """
    prefix = os.path.realpath(folder) + os.sep
    found = []
    for entry in _directory(PROC):
        if entry.isdigit() and (process := _look_at(PROC / entry, prefix)):
            found.append(process)
    return sorted(found, key=lambda process: process.pid)


def _look_at(process: Path, prefix: str) -> Process | None:
    files: set[str] = set()
    deleted: set[str] = set()
    for fd in _directory(process / "fd"):
        try:
            target = os.readlink(process / "fd" / fd)
        except OSError:
            continue  # closed meanwhile
        if target.startswith(prefix):
            name = target.removeprefix(prefix)
            (deleted if name.endswith(_DELETED) else files).add(name.removesuffix(_DELETED))
    if not files and not deleted:
        return None
    try:
        words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
        state = (process / "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return None  # it has ended meanwhile
    command = " ".join(words).strip()
    return Process(int(process.name), command, state == "T", frozenset(files), frozenset(deleted))


def _directory(path: Path) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []

"""What a worker process is doing right now, where others can see it, even after its death.

A small file in ``run/``, mapped into memory: noting that a job begins costs no system call and
no commit, and is still there when the process has been killed. So whoever takes over its jobs
knows which of them were running, and may be what killed it, and which had only been claimed.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..process.mapped import map_file

_SUFFIX = ".work"
_HEADER = 2048
_SLOT = struct.Struct("<qdq")  # job id or 0, since when (epoch), whether it overran its timeout


@dataclass(frozen=True, slots=True)
class Entry:
    """A job that was running, and since when (seconds since the epoch)."""

    job_id: int
    since: float
    overran: bool


@dataclass(frozen=True, slots=True)
class Notes:
    """What a board said."""

    about: dict[str, Any]
    entries: list[Entry]


class Board:
    """The board of this process.

    :param name: of the process's life.
    :param slots: how many jobs may run at a time.
    :param about: what ``status`` says of the worker; JSON.
    :raises OSError: if the disk is full.
    """

    def __init__(self, run_path: Path, name: str, slots: int, about: Mapping[str, Any]) -> None:
        self._path = run_path / (name + _SUFFIX)
        text = json.dumps(about).encode()
        if len(text) > _HEADER:
            text = b"{}"
        try:
            self._bytes = map_file(self._path, _HEADER + slots * _SLOT.size)
        except OSError:
            remove(run_path, name)
            raise
        self._bytes[: len(text)] = text

    def begin(self, slot: int, job_id: int, now: float) -> None:
        """Note that a job begins."""
        _SLOT.pack_into(self._bytes, _HEADER + slot * _SLOT.size, job_id, now, 0)

    def overran(self, slot: int) -> None:
        """Note that the job of a slot does not stop at its timeout."""
        job_id, since, _ = _SLOT.unpack_from(self._bytes, _HEADER + slot * _SLOT.size)
        _SLOT.pack_into(self._bytes, _HEADER + slot * _SLOT.size, job_id, since, 1)

    def end(self, slot: int) -> None:
        """Note that the job of a slot has ended."""
        _SLOT.pack_into(self._bytes, _HEADER + slot * _SLOT.size, 0, 0.0, 0)

    def close(self) -> None:
        """Take the board away. What still runs goes on writing to memory that nobody sees."""
        remove(self._path.parent, self._path.name.removesuffix(_SUFFIX))


def read(run_path: Path, name: str) -> Notes | None:
    """Return what the board of a worker says, or said when it died. None: there is none."""
    try:
        content = (run_path / (name + _SUFFIX)).read_bytes()
    except FileNotFoundError:
        return None
    about = json.loads(content[:_HEADER].rstrip(b"\0") or b"{}")
    entries = [
        Entry(job_id, since, bool(overran))
        for job_id, since, overran in _SLOT.iter_unpack(content[_HEADER:])
        if job_id
    ]
    return Notes(about, entries)


def names(run_path: Path) -> list[str]:
    """Return the names of all boards, those of dead workers included."""
    return [file.removesuffix(_SUFFIX) for file in os.listdir(run_path) if file.endswith(_SUFFIX)]


def remove(run_path: Path, name: str) -> None:
    """Remove the board of a worker, if there is one."""
    with suppress(FileNotFoundError):
        os.unlink(run_path / (name + _SUFFIX))

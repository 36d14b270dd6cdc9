"""Takes over the jobs of workers that have died."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from ..process.liveness import is_alive
from . import board
from .claims import Claims

log = logging.getLogger("flask_litestack.jobs")


def recover(claims: Claims, run_path: Path, own: str, now: Callable[[], float]) -> bool:
    """Queue the jobs of workers that have died again, and remove their boards.

    :param own: the name of this worker's life.
    :param now: the queue's clock.
    :returns: whether there were any jobs.
    :raises LockError: if the database is busy; the rest can be done later.
    """
    any_found = False
    with_jobs = claims.workers()
    for name in {*with_jobs, *board.names(run_path)}:
        if name == own or is_alive(run_path, name):
            continue
        if name not in with_jobs:
            board.remove(run_path, name)  # it was killed while it had nothing to do
            continue
        notes = board.read(run_path, name)
        claims.begin()
        found = claims.recover(
            name,
            started=None if notes is None else [entry.job_id for entry in notes.entries],
            overran=[e.job_id for e in notes.entries if e.overran] if notes else [],
            now=now(),
        )
        claims.commit()
        board.remove(run_path, name)
        if found:
            any_found = True
            log.warning(
                "worker %s has died; its jobs: %s",
                name,
                ", ".join(f"{job_id} {state}" for job_id, state in found),
            )
    return any_found

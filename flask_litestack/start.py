"""What a server does before its first request, once, however many start at the same time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .machine import claim
from .sqlite import filesystem

if TYPE_CHECKING:
    from .extension import Litestack

#: The file that is locked meanwhile, in the data folder.
LOCK = Path("run") / "start.lock"


def start(litestack: Litestack) -> None:
    """Make sure that this machine may serve the data, and that its tables are this release's.

    Needs an app context. Then come the functions of ``@litestack.before_serving``, whose errors
    come out of here.

    :raises DataPathError: if the data folder cannot be used.
    :raises MachineError: if another machine serves the app.
    :raises NewerStoreError: if a release that this one cannot follow has upgraded the tables.
    """
    settings = litestack.settings
    filesystem.prepare(settings.data_path)
    with _alone(settings.data_path):
        claim(settings)
        litestack.jobs.upgrade()
        litestack.cable.upgrade()
        for function in litestack.functions_before_serving:
            function()


@contextmanager
def _alone(data_path: Path) -> Iterator[None]:
    """Wait until no other process starts on this data folder, and keep others from it."""
    import fcntl  # not on Windows, where gunicorn does not run

    file = data_path / LOCK
    file.parent.mkdir(mode=0o700, exist_ok=True)
    with file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield

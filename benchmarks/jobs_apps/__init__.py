"""The same four tasks for each peer. They note their times in the folder BENCH_FOLDER."""

from __future__ import annotations

import os
import time
from pathlib import Path

FOLDER = Path(os.environ.get("BENCH_FOLDER", "."))
REDIS_PORT = int(os.environ.get("BENCH_REDIS", "0"))
POSTGRES = os.environ.get("BENCH_POSTGRES", "")


def note(name: str, n: int) -> None:
    """Append a number and the time to a file."""
    line = f"{n} {time.time():.7f}\n".encode()
    fd = os.open(FOLDER / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(fd, line)
    finally:
        os.close(fd)

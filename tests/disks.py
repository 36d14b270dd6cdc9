"""A small file system of its own, for tests that fill it up."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from flask_litestack.sqlite.health import Severity, check_mount

#: For a test that lets doctor look at a folder of the test's: it would find one error.
on_a_disk = pytest.mark.skipif(
    any(found.severity is Severity.ERROR for found in check_mount(Path(tempfile.gettempdir()))),
    reason="NOT RUN: the temporary folder is in a container's own layer",
)


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """Mount an empty file system of ``size`` bytes below a folder; skip where that needs root."""
    disk = folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True)
    except FileNotFoundError as error:
        pytest.skip(f"NOT RUN: full disk ({error})")
    if done.returncode:
        pytest.skip(f"NOT RUN: full disk (it takes root to mount one: {done.stderr.strip()})")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def fill(ballast: Path) -> None:
    """Leave no room on the disk."""
    with ballast.open("ab", buffering=0) as out, suppress(OSError):
        while True:
            out.write(bytes(4096))

"""What is stored into a map has room on the disk."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from flask_litestack.process.mapped import map_file, map_file_or_memory
from tests.disks import fill, small_disk

SIZE = 3 * 4096


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A full disk, on which a file of that size is there, as a hole."""
    with small_disk(tmp_path, 1024 * 1024) as disk:
        with (disk / "hole").open("wb") as file:
            file.truncate(SIZE)
        fill(disk / "ballast")
        yield disk


def test_the_processes_that_map_a_file_see_each_others_bytes(tmp_path: Path) -> None:
    one = map_file(tmp_path / "file", SIZE)
    one[SIZE - 1] = 7
    other = map_file(tmp_path / "file", SIZE)
    assert len(other) == SIZE
    assert other[SIZE - 1] == 7
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("start", [0, 100, SIZE])
def test_a_short_or_hollow_file_gets_real_blocks_and_keeps_its_bytes(
    tmp_path: Path, start: int
) -> None:
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.write(b"x")
        file.truncate(max(1, start))
    assert map_file(path, SIZE)[0] == ord("x")
    assert path.stat().st_size == SIZE
    assert path.stat().st_blocks * 512 >= SIZE


@pytest.mark.parametrize("name", ["new", "hole"])
def test_a_map_without_room_on_the_disk_is_an_error_that_names_the_file(
    full: Path, name: str
) -> None:
    with pytest.raises(OSError, match=name) as raised:
        map_file(full / name, SIZE)
    assert raised.value.errno == errno.ENOSPC


@pytest.mark.parametrize("name", ["new", "hole", "run/new"])
def test_a_process_on_a_full_disk_does_without_the_others(
    full: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    mapped = map_file_or_memory(full / name, SIZE)
    mapped[:] = os.urandom(SIZE)
    assert "the disk is full" in caplog.text
    assert name in caplog.text


def test_another_error_than_a_full_disk_is_raised(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(IsADirectoryError):
        map_file_or_memory(tmp_path / "file", SIZE)

"""Opening a live database by other means is an error, because it would lose commits."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flask_litestack import sqlite
from flask_litestack.errors import LiveFileError
from flask_litestack.sqlite import driver
from flask_litestack.sqlite.connection import Connection


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "data.sqlite3"
    connection = sqlite.connect(path)
    connection.execute("CREATE TABLE t (a)")
    connection.commit()
    yield path
    connection.close()


def zip_it(path: Path) -> None:
    with zipfile.ZipFile(path.with_suffix(".zip"), "w") as archive:
        archive.write(path)


@pytest.mark.parametrize(
    "how",
    [
        lambda path: open(path, "rb"),
        lambda path: open(bytes(path)),
        lambda path: path.read_bytes(),
        lambda path: os.open(path, os.O_RDONLY),
        lambda path: os.open(str(path), os.O_RDONLY),
        lambda path: shutil.copyfile(path, path.with_name("copy")),
        lambda path: shutil.copy2(path, path.with_name("copy")),
        lambda path: open(f"{path}-shm", "rb"),
        lambda path: open(os.path.relpath(path), "rb"),
        zip_it,
    ],
)
def test_other_ways_to_open_a_live_file_are_refused(
    live: Path, how: Callable[[Path], object]
) -> None:
    with pytest.raises(LiveFileError, match="flask litestack backup"):
        how(live)


@pytest.mark.skipif(driver.name == "sqlite3", reason="the standard library's SQLite is the one")
@pytest.mark.parametrize("name", ["{}", "file:{}?mode=ro"])
def test_a_second_sqlite_library_is_refused(live: Path, name: str) -> None:
    with pytest.raises(LiveFileError, match="another SQLite library"):
        sqlite3.connect(name.format(live), uri=name.startswith("file:"))


def test_a_symbolic_link_does_not_hide_the_file(live: Path, tmp_path: Path) -> None:
    link = tmp_path / "link" / "data.sqlite3"
    link.parent.mkdir()
    link.symlink_to(live)
    with pytest.raises(LiveFileError):
        link.read_bytes()


def test_files_of_the_same_name_elsewhere_are_free(live: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "data.sqlite3"
    other.parent.mkdir()
    other.write_bytes(b"not ours")
    assert other.read_bytes() == b"not ours"


def test_our_own_connections_are_free(live: Path) -> None:
    with sqlite.connect(live) as second:
        assert second.execute("SELECT count(*) FROM t").fetchone() == (0,)
    second.close()


def test_a_closed_file_is_free(tmp_path: Path) -> None:
    path = tmp_path / "closed.sqlite3"
    connection = sqlite.connect(path)
    connection.execute("CREATE TABLE t (a)")
    connection.commit()
    with pytest.raises(LiveFileError):
        path.read_bytes()
    connection.close()
    assert path.read_bytes().startswith(b"SQLite format 3")


def test_a_closed_file_is_free_while_another_of_its_name_is_open(
    live: Path, tmp_path: Path
) -> None:
    path = tmp_path / "other" / live.name
    path.parent.mkdir()
    sqlite.connect(path).close()
    path.read_bytes()
    with pytest.raises(LiveFileError):
        live.read_bytes()


def test_the_guard_can_be_switched_off(tmp_path: Path) -> None:
    path = tmp_path / "free.sqlite3"
    connection: Connection = sqlite.connect(path, guard=False)
    path.read_bytes()
    connection.close()


LOSE_COMMITS = """
import os, signal, subprocess, sys
from flask_litestack import sqlite
path, guarded = sys.argv[1], sys.argv[2] == "guarded"
connection = sqlite.connect(path, guard=guarded)
connection.execute("CREATE TABLE t (a)")
connection.commit()
try:
    for suffix in ("", "-wal", "-shm"):  # somebody's backup: a copy of the folder
        open(path + suffix, "rb").close()
except Exception as error:
    print(type(error).__name__)
# Another process opens and closes the database; without our locks it believes to be alone.
subprocess.run([sys.executable, "-c", f'''
from flask_litestack import sqlite
other = sqlite.connect({path!r}, guard=False)
other.execute("SELECT count(*) FROM t").fetchone()
other.close()
'''], check=True)
for n in range(20):
    connection.execute("INSERT INTO t VALUES (?)", (n,))
    connection.commit()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(("mode", "rows"), [("guarded", 20), ("unguarded", 0)])
def test_what_the_guard_prevents(tmp_path: Path, mode: str, rows: int) -> None:
    """Without the guard, acknowledged commits are gone and integrity_check still says ok."""
    path = tmp_path / "data.sqlite3"
    done = subprocess.run(
        [sys.executable, "-c", LOSE_COMMITS, str(path), mode], capture_output=True, text=True
    )
    assert done.stdout.strip() == ("LiveFileError" if mode == "guarded" else "")
    after = sqlite.connect(path)
    assert after.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert after.execute("SELECT count(*) FROM t").fetchone() == (rows,)
    after.close()

"""Backups: one moment, checked, rotated; restores: verified first, nothing lost."""

from __future__ import annotations

import json
import shutil
import threading
from contextlib import closing
from pathlib import Path

import pytest

from flask_litestack import sqlite
from flask_litestack.errors import BackupError
from flask_litestack.sqlite import driver
from flask_litestack.sqlite.backup import MANIFEST, backup, backups, restore, verify


def plain(path: Path) -> driver.Connection:
    """Open a file without a syncer behind it, so that a test may damage the file afterwards."""
    connection = driver.module.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    return connection


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data folder with two databases and a key."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("data.sqlite3", "cable.sqlite3"):
        with closing(plain(folder / name)) as connection:
            connection.execute("CREATE TABLE t (n INTEGER)")
            connection.executemany("INSERT INTO t VALUES (?)", [(n,) for n in range(10)])
    (folder / "secret_key").write_text("secret")
    return folder


def databases(folder: Path) -> list[Path]:
    return [folder / "data.sqlite3", folder / "cable.sqlite3"]


def rows(path: Path) -> int:
    with closing(sqlite.connect(path)) as connection:
        count: int = connection.execute("SELECT count(*) FROM t").fetchone()[0]
        return count


def test_a_backup_holds_every_row_and_the_other_files(folder: Path, tmp_path: Path) -> None:
    with closing(sqlite.connect(folder / "data.sqlite3")) as connection:
        connection.execute("INSERT INTO t VALUES (10)")
        connection.commit()
        path, manifest = backup(databases(folder), [folder / "secret_key"], tmp_path / "backups")
    assert verify(path) == manifest
    assert {copy.name: copy.rows for copy in manifest.files} == {
        "data.sqlite3": {"t": 11},
        "cable.sqlite3": {"t": 10},
        "secret_key": None,
    }
    assert path.stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in path.iterdir()} <= {0o600, 0o644}
    assert sorted(file.name for file in path.iterdir()) == sorted(
        ["data.sqlite3", "cable.sqlite3", "secret_key", MANIFEST]
    )


def test_every_backup_taken_while_two_files_are_written_is_of_one_moment(
    folder: Path, tmp_path: Path
) -> None:
    """The writer adds a row to the first file and then to the second: one row apart at most."""
    stop = threading.Event()

    def write() -> None:
        with (
            closing(sqlite.connect(folder / "data.sqlite3")) as first,
            closing(sqlite.connect(folder / "cable.sqlite3")) as second,
        ):
            n = 10
            while not stop.is_set():
                for connection in (first, second):
                    connection.execute("INSERT INTO t VALUES (?)", (n,))
                    connection.commit()
                n += 1

    writer = threading.Thread(target=write)
    writer.start()
    seen = []
    try:
        for _ in range(15):
            path, manifest = backup(databases(folder), [], tmp_path / "backups")
            counts = [(copy.rows or {})["t"] for copy in manifest.files]
            assert counts[0] - counts[1] in (0, 1)
            seen.append(counts[0])
            verify(path)
    finally:
        stop.set()
        writer.join()
    assert seen == sorted(seen)
    assert seen[-1] > seen[0]


def test_progress_reaches_the_end_and_never_starts_over(folder: Path, tmp_path: Path) -> None:
    with closing(sqlite.connect(folder / "data.sqlite3")) as connection:
        connection.execute("INSERT INTO t VALUES (zeroblob(30000000))")
        connection.commit()
        told: list[tuple[int, int]] = []

        def progress(done: int, total: int) -> None:
            told.append((done, total))
            connection.execute("INSERT INTO t VALUES (0)")  # a writer that never rests
            connection.commit()

        backup(databases(folder), [], tmp_path / "backups", progress=progress)
    assert told == sorted(told)
    assert told[-1][0] == told[-1][1] > 30_000_000
    assert len(told) > 5


def test_the_oldest_backups_are_removed_and_other_files_are_not(
    folder: Path, tmp_path: Path
) -> None:
    destination = tmp_path / "backups"
    destination.mkdir()
    (destination / "notes.txt").write_text("mine")
    made = [backup(databases(folder), [], destination, keep=2)[0] for _ in range(4)]
    assert backups(destination) == made[-2:]
    assert (destination / "notes.txt").exists()


def test_a_compressed_backup_is_one_file(folder: Path, tmp_path: Path) -> None:
    path, manifest = backup(databases(folder), [], tmp_path / "backups", compress=True)
    assert path.is_file()
    assert path.name.endswith(".tar.gz")
    assert path.stat().st_mode & 0o777 == 0o600
    assert verify(path) == manifest
    assert backups(tmp_path / "backups") == [path]


def test_what_a_killed_backup_left_is_removed(folder: Path, tmp_path: Path) -> None:
    left = tmp_path / "backups" / ".2020-01-01T00-00-00Z.partial"
    left.mkdir(parents=True)
    path, _ = backup(databases(folder), [], tmp_path / "backups")
    assert not left.exists()
    assert backups(tmp_path / "backups") == [path]


def test_a_failing_backup_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        backup(databases(folder), [folder / "missing"], tmp_path / "backups")
    assert backups(tmp_path / "backups") == []
    assert list((tmp_path / "backups").glob("*.partial")) == []


def test_a_damaged_database_is_not_backed_up_as_if_it_were_whole(
    folder: Path, tmp_path: Path
) -> None:
    path = folder / "data.sqlite3"
    with closing(plain(path)) as connection:
        connection.executemany("INSERT INTO t VALUES (?)", [(n,) for n in range(5000)])
        connection.execute("CREATE INDEX i ON t (n)")
    content = bytearray(path.read_bytes())
    content[8192:8292] = b"\xff" * 100
    path.write_bytes(content)
    with pytest.raises(BackupError, match=r"data\.sqlite3 is damaged"):
        backup(databases(folder), [], tmp_path / "backups")
    assert backups(tmp_path / "backups") == []


def test_no_room_is_said_before_anything_is_copied(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))
    with pytest.raises(BackupError, match="MiB left"):
        backup(databases(folder), [], tmp_path / "backups")


def test_a_restore_brings_back_the_rows_and_keeps_what_was_there(
    folder: Path, tmp_path: Path
) -> None:
    path, _ = backup(databases(folder), [folder / "secret_key"], tmp_path / "backups")
    with closing(sqlite.connect(folder / "data.sqlite3")) as connection:
        connection.execute("DELETE FROM t")
        connection.commit()
    (folder / "secret_key").write_text("another")
    manifest, before = restore(path, folder, {})
    assert manifest == verify(path)
    assert rows(folder / "data.sqlite3") == 10
    assert (folder / "secret_key").read_text() == "secret"
    assert rows(before / "data.sqlite3") == 0
    assert (before / "secret_key").read_text() == "another"


def test_a_restore_from_one_file_into_an_empty_folder(folder: Path, tmp_path: Path) -> None:
    path, _ = backup(databases(folder), [], tmp_path / "backups", compress=True)
    restore(path, tmp_path / "new", {"data.sqlite3": tmp_path / "elsewhere.db"})
    assert rows(tmp_path / "elsewhere.db") == 10
    assert rows(tmp_path / "new" / "cable.sqlite3") == 10


def test_a_restore_replaces_a_file_that_is_no_database_any_more(
    folder: Path, tmp_path: Path
) -> None:
    path, _ = backup(databases(folder), [], tmp_path / "backups")
    (folder / "data.sqlite3").write_bytes(b"overwritten by accident" * 1000)
    (folder / "data.sqlite3-wal").write_bytes(b"a log that must not be applied" * 1000)
    _, before = restore(path, folder, {})
    assert rows(folder / "data.sqlite3") == 10
    assert (before / "data.sqlite3-wal").exists()


def test_a_restore_refuses_while_a_file_is_in_use(folder: Path, tmp_path: Path) -> None:
    path, _ = backup(databases(folder), [], tmp_path / "backups")
    with closing(sqlite.connect(folder / "data.sqlite3")) as user:
        user.execute("SELECT * FROM t")
        user.execute("INSERT INTO t VALUES (99)")
        user.commit()
        with pytest.raises(BackupError, match="Stop the app"):
            restore(path, folder, {})
        assert user.execute("SELECT count(*) FROM t").fetchone() == (11,)
    assert rows(folder / "data.sqlite3") == 11


@pytest.mark.parametrize("damage", ["missing", "changed", "rows", "no manifest", "truncated"])
def test_a_damaged_backup_is_refused_and_nothing_is_touched(
    folder: Path, tmp_path: Path, damage: str
) -> None:
    compress = damage == "truncated"
    path, _ = backup(databases(folder), [], tmp_path / "backups", compress=compress)
    if damage == "missing":
        (path / "cable.sqlite3").unlink()
    elif damage == "changed":
        with open(path / "cable.sqlite3", "r+b") as file:
            file.seek(5000)
            file.write(b"x")
    elif damage == "rows":
        manifest = json.loads((path / MANIFEST).read_text())
        manifest["files"][0]["rows"]["t"] = 99
        (path / MANIFEST).write_text(json.dumps(manifest))
    elif damage == "no manifest":
        (path / MANIFEST).unlink()
    else:
        path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(BackupError):
        verify(path)
    with pytest.raises(BackupError):
        restore(path, folder, {})
    assert rows(folder / "data.sqlite3") == 10
    assert not list(folder.glob("*restore*"))


def test_verifying_changes_nothing(folder: Path, tmp_path: Path) -> None:
    path, _ = backup(databases(folder), [], tmp_path / "backups")
    (path / "data.sqlite3").chmod(0o440)
    verify(path)
    assert (path / "data.sqlite3").stat().st_mode & 0o777 == 0o440

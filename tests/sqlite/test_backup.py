"""Backups: one moment, checked, rotated; restores: verified first, nothing lost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from contextlib import closing
from pathlib import Path

import pytest

from flask_litestack import sqlite
from flask_litestack.errors import BackupError, DataPathError
from flask_litestack.sqlite import driver, filesystem
from flask_litestack.sqlite.backup import MANIFEST, backup, backups, restore, verify
from tests.disks import small_disk


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
    left = tmp_path / "backups" / ".2020-01-01T00-00-00-000Z.partial"
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
    damage(folder / "data.sqlite3")
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


@pytest.mark.parametrize("what", ["missing", "changed", "rows", "no manifest", "truncated"])
def test_a_damaged_backup_is_refused_and_nothing_is_touched(
    folder: Path, tmp_path: Path, what: str
) -> None:
    compress = what == "truncated"
    path, _ = backup(databases(folder), [], tmp_path / "backups", compress=compress)
    if what == "missing":
        (path / "cable.sqlite3").unlink()
    elif what == "changed":
        with open(path / "cable.sqlite3", "r+b") as file:
            file.seek(5000)
            file.write(b"x")
    elif what == "rows":
        manifest = json.loads((path / MANIFEST).read_text())
        manifest["files"][0]["rows"]["t"] = 99
        (path / MANIFEST).write_text(json.dumps(manifest))
    elif what == "no manifest":
        (path / MANIFEST).unlink()
    else:
        path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(BackupError):
        verify(path)
    with pytest.raises(BackupError):
        restore(path, folder, {})
    assert rows(folder / "data.sqlite3") == 10
    assert not list(folder.glob("*restore*"))


def test_the_log_of_a_copied_database_can_start_anew_while_the_next_one_is_copied(
    folder: Path, tmp_path: Path
) -> None:
    with closing(plain(folder / "cable.sqlite3")) as connection:
        connection.execute("INSERT INTO t VALUES (zeroblob(10000000))")
        size = (folder / "cable.sqlite3").stat().st_size
    busy = []
    with closing(plain(folder / "data.sqlite3")) as writer:

        def progress(done: int, total: int) -> None:
            if done > total - size:  # of cable.sqlite3
                writer.execute("INSERT INTO t VALUES (0)")
                busy.append(writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0])

        backup(databases(folder), [], tmp_path / "backups", progress=progress)
    assert busy
    assert not any(busy)


def damage(path: Path) -> None:
    """Damage an index of a database that SQLite opens all the same."""
    with closing(plain(path)) as connection:
        connection.executemany("INSERT INTO t VALUES (?)", [(n,) for n in range(5000)])
        connection.execute("CREATE INDEX i ON t (n)")
    content = bytearray(path.read_bytes())
    content[8192:8292] = b"\xff" * 100
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["a page", "all of it"])
def test_a_damaged_file_that_the_app_can_do_without_is_left_out(
    folder: Path, tmp_path: Path, how: str
) -> None:
    cable = folder / "cable.sqlite3"
    if how == "a page":
        damage(cable)
    else:
        cable.write_bytes(b"no database" * 1000)
    path, manifest = backup(
        databases(folder), [], tmp_path / "backups", expendable={"cable.sqlite3"}
    )
    assert verify(path) == manifest
    assert [copy.name for copy in manifest.files] == ["data.sqlite3"]
    assert list(manifest.left_out) == ["cable.sqlite3"]
    assert sorted(file.name for file in path.iterdir()) == ["data.sqlite3", MANIFEST]


def test_what_the_backup_left_out_does_not_survive_its_restore(
    folder: Path, tmp_path: Path
) -> None:
    path, _ = backup([folder / "data.sqlite3"], [], tmp_path / "backups")
    (folder / "cable.sqlite3-wal").touch()
    restore(path, folder, {}, expendable={"cable.sqlite3"})
    assert list(folder.glob("cable*")) == []


@pytest.mark.parametrize("name", ["data.sqlite3", MANIFEST])
def test_two_files_of_one_name_are_refused(folder: Path, tmp_path: Path, name: str) -> None:
    other = tmp_path / name
    other.touch()
    with pytest.raises(BackupError, match=f"called {name}"):
        backup(databases(folder), [other], tmp_path / "backups")
    assert not (tmp_path / "backups").exists()


def test_the_room_that_other_files_need_counts(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open(folder / "film", "wb") as file:
        file.truncate(10_000_000)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=9_000_000))
    with pytest.raises(BackupError, match="needs 10 MiB"):
        backup(databases(folder), [folder / "film"], tmp_path / "backups")
    backup(databases(folder), [], tmp_path / "backups")


@pytest.mark.parametrize("compress", [False, True])
def test_a_disk_that_fills_up_meanwhile_is_named_and_nothing_stays_on_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compress: bool
) -> None:
    with closing(plain(folder / "data.sqlite3")) as connection:
        connection.execute("INSERT INTO t VALUES (randomblob(1000000))")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)  # as it was before
    with small_disk(tmp_path, 1_500_000 if compress else 500_000) as disk:
        with pytest.raises(BackupError, match=f"disk of {disk} has no room left"):
            backup(databases(folder), [], disk, compress=compress)
        assert [path.name for path in disk.iterdir()] == [".lock"]


def test_a_backup_leaves_alone_what_is_not_its_own(folder: Path, tmp_path: Path) -> None:
    """Not even what cannot be removed is in its way: root's, say."""
    destination = tmp_path / "backups"
    (destination / ".2020-01-01T00-00-00-000Z.tar.gz.verify.partial").mkdir(parents=True)
    (destination / ".mine.partial").touch()
    backup(databases(folder), [], destination)
    assert len(list(destination.glob(".*.partial"))) == 2


def test_a_compressed_backup_is_verified_where_nothing_can_be_written(
    folder: Path, tmp_path: Path
) -> None:
    with small_disk(tmp_path, 2_000_000) as disk:
        path, manifest = backup(databases(folder), [], disk, compress=True)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        assert verify(path) == manifest


@pytest.mark.parametrize("suffix", ["-wal", "-journal"])
def test_a_log_without_its_database_is_not_applied_to_the_restored_one(
    folder: Path, tmp_path: Path, suffix: str
) -> None:
    data = folder / "data.sqlite3"
    path, _ = backup(databases(folder), [], tmp_path / "backups")
    connection = plain(data)
    if suffix == "-journal":
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("PRAGMA cache_size = 1")  # so that the journal is written early
        connection.execute("BEGIN")
    else:
        connection.execute("PRAGMA wal_autocheckpoint = 0")
    connection.execute("DELETE FROM t")
    connection.executemany("INSERT INTO t VALUES (?)", [(n,) for n in range(3000)])
    log = data.with_name(data.name + suffix)
    shutil.copy(log, tmp_path / "log")
    connection.close()
    data.unlink()
    shutil.copy(tmp_path / "log", log)

    _, before = restore(path, folder, {})

    assert rows(data) == 10
    assert (before / log.name).stat().st_size > 0


class Interrupted(Exception):
    """In the place of a kill -9, at a point of our choice."""


def test_an_interrupted_restore_keeps_the_app_from_starting_until_it_is_done_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = backup(databases(folder), [], tmp_path / "backups")
    for database in databases(folder):
        with closing(plain(database)) as connection:
            connection.execute("INSERT INTO t VALUES (99)")
    replace, places = os.replace, []

    def interrupted(staged: Path, place: Path) -> None:
        if places:
            raise Interrupted
        places.append(place)
        replace(staged, place)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(Interrupted):
        restore(path, folder, {})
    monkeypatch.undo()
    assert [rows(database) for database in databases(folder)] == [10, 11]
    [before] = folder.glob("before-restore-*")
    assert sorted(file.name for file in before.glob("*.sqlite3")) == [
        "cable.sqlite3",
        "data.sqlite3",
    ]

    with pytest.raises(DataPathError, match="files of two moments") as refused:
        filesystem.prepare(folder)
    assert str(before) in str(refused.value)

    restore(path, folder, {})
    filesystem.prepare(folder)
    assert [rows(database) for database in databases(folder)] == [10, 10]


def test_a_restore_that_is_refused_leaves_nothing_unfinished(folder: Path, tmp_path: Path) -> None:
    path, _ = backup(databases(folder), [], tmp_path / "backups")
    with closing(plain(folder / "cable.sqlite3")) as user:
        user.execute("SELECT * FROM t").fetchone()
        with pytest.raises(BackupError, match=r"cable\.sqlite3 is in use"):
            restore(path, folder, {})
    filesystem.prepare(folder)
    assert list(folder.glob("before-restore-*")) == []


def test_a_restore_to_another_disk_is_refused_before_anything_is_touched(
    folder: Path, tmp_path: Path
) -> None:
    path, _ = backup(databases(folder), [], tmp_path / "backups")
    with small_disk(tmp_path, 2_000_000) as disk:
        with pytest.raises(BackupError, match="on another disk"):
            restore(path, folder, {"cable.sqlite3": disk / "cable.sqlite3"})
        assert list(disk.iterdir()) == []
    filesystem.prepare(folder)
    assert list(folder.glob("*restore*")) == []


def test_no_room_for_a_restore_is_said_before_anything_is_touched(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = backup(databases(folder), [], tmp_path / "backups", compress=True)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))
    with pytest.raises(BackupError, match="MiB left"):
        restore(path, folder, {})
    assert list(folder.glob("*restore*")) == []


def test_verifying_changes_nothing(folder: Path, tmp_path: Path) -> None:
    path, _ = backup(databases(folder), [], tmp_path / "backups")
    (path / "data.sqlite3").chmod(0o440)
    verify(path)
    assert (path / "data.sqlite3").stat().st_mode & 0o777 == 0o440

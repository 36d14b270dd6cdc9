"""What doctor looks at, without an app."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flask_litestack import sqlite
from flask_litestack.process.openfiles import processes_using
from flask_litestack.sqlite import filesystem, health
from flask_litestack.sqlite.connection import Connection
from flask_litestack.sqlite.databases import Databases
from flask_litestack.sqlite.health import Finding, Severity
from flask_litestack.sqlite.pragmas import WAL_LIMIT
from tests.servers import environment


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Connection]:
    connection = sqlite.connect(tmp_path / "data.sqlite3", busy_timeout=0.3)
    connection.execute("CREATE TABLE t (x)")
    connection.commit()
    yield connection
    connection.close()


def of(findings: Iterator[Finding], check: str) -> Finding:
    """The one finding of a check."""
    [found] = [finding for finding in findings if finding.check == check]
    return found


def look(database: Connection, tmp_path: Path, check: str) -> Finding:
    return of(health.check_database(tmp_path / "data.sqlite3", database, "NORMAL"), check)


@pytest.mark.parametrize(
    ("version", "severity"),
    [
        ((3, 40, 1), Severity.WARNING),
        ((3, 51, 2), Severity.WARNING),
        ((3, 50, 7), Severity.OK),
        ((3, 51, 3), Severity.OK),
        ((3, 53, 4), Severity.OK),
    ],
)
def test_a_sqlite_with_the_wal_reset_race_is_a_warning(
    version: tuple[int, ...], severity: Severity
) -> None:
    found = health.check_sqlite(version)

    assert found.severity is severity
    assert bool(found.fix) is (severity is not Severity.OK)


def test_every_finding_that_is_not_ok_says_how_to_fix_it(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file in the place of the folder")

    found = of(health.check_folder(Databases(tmp_path / "data")), "data folder")

    assert found.severity is Severity.ERROR
    assert found.fix.startswith("Set LITESTACK_DATA_PATH")


def test_pragmas_are_read_back(database: Connection, tmp_path: Path) -> None:
    assert look(database, tmp_path, "pragmas").severity is Severity.OK

    database.execute("PRAGMA mmap_size = 4096")

    found = look(database, tmp_path, "pragmas")
    assert found.severity is Severity.ERROR
    assert "mmap_size is 4096 instead of 0" in found.what


def test_a_free_write_lock_is_given_back(database: Connection, tmp_path: Path) -> None:
    assert look(database, tmp_path, "write lock").severity is Severity.OK
    assert not database.in_transaction


HOLD = """
import sys
from flask_litestack.sqlite import driver
connection = driver.module.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.read()
"""


def test_a_writer_that_is_not_of_ours_is_found_too(database: Connection, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "data.sqlite3")],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    try:
        found = look(database, tmp_path, "write lock")
    finally:
        process.communicate()

    assert found.severity is Severity.ERROR
    assert found.fix


def test_a_log_that_cannot_start_anew_is_a_warning(database: Connection, tmp_path: Path) -> None:
    reader = sqlite.connect(tmp_path / "data.sqlite3")
    reader.begin_read()
    written = 0
    while written <= 4 * WAL_LIMIT:
        database.execute("INSERT INTO t VALUES (zeroblob(8000000))")
        database.commit()
        written += 8_000_000

    found = look(database, tmp_path, "wal")
    reader.close()

    assert found.severity is Severity.WARNING
    assert f"{os.getpid()} (" in found.fix


def test_a_process_that_works_on_a_deleted_file_is_found(
    database: Connection, tmp_path: Path
) -> None:
    shutil.rmtree(tmp_path)

    [process] = processes_using(tmp_path)
    tmp_path.mkdir()
    found = of(health.check_folder(Databases(tmp_path)), "deleted files")

    assert process.pid == os.getpid()
    assert "data.sqlite3" in process.deleted
    assert found.severity is Severity.ERROR
    assert str(os.getpid()) in found.what


def test_a_stopped_process_is_told_from_a_running_one(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    with (tmp_path / "x").open() as file:
        process = subprocess.Popen(["sleep", "60"], stdin=file)
        try:
            process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED)
            states = {found.pid: found.stopped for found in processes_using(tmp_path)}
        finally:
            process.kill()
            process.wait()

    assert states == {os.getpid(): False, process.pid: True}


def mounted_on(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Finding]:
    """The findings for a folder that the kernel says lies on such a file system."""
    monkeypatch.setattr(filesystem, "MOUNTS", tmp_path / "mountinfo")
    filesystem.MOUNTS.write_text(f"1 0 0:1 / {tmp_path} rw - {kind} source rw\n")
    return list(health.check_folder(Databases(tmp_path)))


@pytest.mark.parametrize(
    ("kind", "severity"),
    [
        ("ext4", Severity.OK),
        ("tmpfs", Severity.WARNING),
        ("overlay", Severity.WARNING),
        ("fuse.somefs", Severity.WARNING),
        ("virtiofs", Severity.WARNING),
    ],
)
def test_a_file_system_that_does_not_last_is_a_warning(
    kind: str, severity: Severity, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "IN_CONTAINER", ())
    found = of(iter(mounted_on(kind, tmp_path, monkeypatch)), "file system")

    assert found.severity is severity
    assert kind in found.what


@pytest.mark.parametrize("kind", ["tmpfs", "overlay"])
def test_in_a_container_it_is_an_error(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "IN_CONTAINER", (tmp_path,))
    found = of(iter(mounted_on(kind, tmp_path, monkeypatch)), "file system")

    assert found.severity is Severity.ERROR
    assert found.fix.startswith("Mount a volume")


def test_on_fly_the_disk_of_the_machine_itself_does_not_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filesystem, "MOUNTS", tmp_path / "mountinfo")
    fly = {"FLY_MACHINE_ID": "e82d"}
    root = "1 0 0:1 / / rw - ext4 /dev/vda rw\n"

    filesystem.MOUNTS.write_text(root)
    [on_root] = health.check_mount(tmp_path, fly)
    [elsewhere] = health.check_mount(tmp_path, {})
    filesystem.MOUNTS.write_text(f"{root}2 1 0:2 / {tmp_path} rw - ext4 /dev/vdb rw\n")
    [on_volume] = health.check_mount(tmp_path, fly)

    assert on_root.severity is Severity.ERROR
    assert "everything is gone after the next deploy" in on_root.what
    assert (elsewhere.severity, on_volume.severity) == (Severity.OK, Severity.OK)


def test_a_network_file_system_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = mounted_on("nfs4", tmp_path, monkeypatch)

    [error] = [finding for finding in found if finding.severity is Severity.ERROR]
    assert "nfs4 from source" in error.what
    assert "local disk" in error.fix


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system, so needs root")
def test_a_disk_that_is_nearly_full_is_an_error(tmp_path: Path) -> None:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(tmp_path)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("this machine does not let root mount")
    try:
        found = of(health.check_folder(Databases(tmp_path)), "disk")
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)

    assert found.severity is Severity.ERROR
    assert "Only 1.0 MB free" in found.what


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (123_456, "123 kB"),
        (1_234_567, "1.2 MB"),
        (5e15, "5000 TB"),
    ],
)
def test_sizes_are_written_for_people(count: float, text: str) -> None:
    assert health.human(count) == text

"""Commits reach the disk within a second, and the log stays small."""

from __future__ import annotations

import errno
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from flask_litestack import sqlite
from flask_litestack.errors import StoreError
from flask_litestack.sqlite import driver, sync
from flask_litestack.sqlite.connection import Connection
from flask_litestack.sqlite.file import file_at

linux = pytest.mark.skipif(sys.platform != "linux", reason="looks at descriptors in /proc")


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[Connection]:
    connection = sqlite.connect(tmp_path / "data.sqlite3")
    yield connection
    connection.close()


def eventually(condition: Callable[[], bool], seconds: float = 10) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return condition()


def backfilled(connection: Connection) -> bool:
    """Whether all of the log is in the database file; asked without doing it."""
    header = Path(connection.execute("PRAGMA database_list").fetchone()[2]).stat()
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    return header.st_size >= pages * 4096


def syncers() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("litestack-sync")]


def test_a_commit_is_checkpointed_without_anybody_asking(connection: Connection) -> None:
    connection.execute("CREATE TABLE t (a)")
    connection.execute("INSERT INTO t VALUES (zeroblob(100000))")
    connection.commit()
    assert not backfilled(connection)
    assert eventually(lambda: backfilled(connection))


def test_nothing_runs_before_the_first_commit_and_after_the_last(
    connection: Connection, tmp_path: Path
) -> None:
    name = "litestack-sync quiet.sqlite3"
    quiet = sqlite.connect(tmp_path / "quiet.sqlite3")
    quiet.execute("SELECT * FROM sqlite_schema")
    assert name not in syncers()
    quiet.execute("CREATE TABLE t (a)")
    quiet.commit()
    assert name in syncers()
    assert eventually(lambda: name not in syncers())
    quiet.execute("INSERT INTO t VALUES (1)")
    quiet.commit()
    assert name in syncers()
    quiet.close()


def test_the_log_starts_anew_under_writers_that_never_pause(
    connection: Connection, tmp_path: Path
) -> None:
    connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, a BLOB)")
    connection.commit()
    stop = threading.Event()

    def write() -> None:
        own = sqlite.connect(tmp_path / "data.sqlite3")
        while not stop.is_set():
            own.execute("INSERT OR REPLACE INTO t VALUES (abs(random()) % 50, zeroblob(40000))")
            own.commit()
        own.close()

    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    log = tmp_path / "data.sqlite3-wal"
    sizes = []
    for _ in range(30):
        time.sleep(0.1)
        sizes.append(log.stat().st_size)
    stop.set()
    for thread in threads:
        thread.join()
    # 3 s of writing is far more than this; a log that never started anew would hold all of it.
    assert max(sizes) < 120_000_000


def test_a_failing_checkpoint_is_logged_and_tried_again(
    connection: Connection, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "bad.sqlite3"
    syncer = file_at(path).syncer
    path.write_bytes(b"this is not a database, and long enough to be looked at" * 20)
    syncer.note()
    assert eventually(lambda: caplog.text.count("trying again") >= 2)
    path.unlink()
    assert eventually(lambda: "litestack-sync bad.sqlite3" not in syncers())
    assert issubclass(driver.DatabaseError, Exception)


@dataclass
class Disk:
    """Notes what is synced, and may take its time or fail."""

    seconds: float = 0.0
    broken: bool = False
    synced: list[str] = field(default_factory=list)

    def sync(self, fd: int) -> None:
        self.synced.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name)
        time.sleep(self.seconds)
        if self.broken:
            raise OSError(errno.EIO, "Input/output error")


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk()
    monkeypatch.setattr(sync, "_fdatasync", disk.sync)
    return disk


@linux
def test_a_long_reader_does_not_keep_commits_from_being_synced(
    connection: Connection, disk: Disk, tmp_path: Path
) -> None:
    connection.execute("CREATE TABLE t (a)")
    connection.commit()
    syncer = file_at(tmp_path / "data.sqlite3").syncer
    syncer.sync()
    assert disk.synced == []  # SQLite itself has synced what it wrote
    reader = sqlite.connect(tmp_path / "data.sqlite3")
    snapshot = reader.begin_read()
    connection.execute("INSERT INTO t VALUES (1)")
    connection.commit()
    syncer.sync()
    assert disk.synced == ["data.sqlite3-wal"]
    assert reader.execute("SELECT count(*) FROM t").fetchone() == (0,)
    reader.end_read(snapshot)
    assert reader.execute("SELECT count(*) FROM t").fetchone() == (1,)
    reader.close()


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A process that may not start another thread, until this is undone."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        yield patch


@linux
def test_without_a_thread_each_commit_syncs_by_itself(
    connection: Connection,
    disk: Disk,
    no_threads: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    done: list[int] = []
    for count in range(1, 3):
        connection.execute(f"CREATE TABLE t{count} (a)")
        connection.after_commit(lambda: done.append(len(disk.synced)))
        connection.commit()
    assert done == [1, 2]
    assert caplog.text.count("no thread for the checkpoints") == 1
    no_threads.undo()
    connection.execute("INSERT INTO t1 VALUES (zeroblob(100000))")
    connection.commit()
    assert "litestack-sync data.sqlite3" in syncers()
    assert eventually(lambda: backfilled(connection))


def test_a_file_that_fails_at_exit_does_not_keep_the_others_from_being_checkpointed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    connections = [sqlite.connect(tmp_path / f"{number}.sqlite3") for number in range(5)]
    for connection in connections:
        connection.execute("CREATE TABLE t (a)")
        connection.execute("INSERT INTO t VALUES (zeroblob(100000))")
    broken = tmp_path / "broken.sqlite3"
    broken.write_bytes(b"this is not a database, and long enough to be looked at" * 20)
    file_at(broken).syncer.note()
    for connection in connections:
        connection.commit()
    sync._sync_all()
    broken.unlink()
    assert "the last checkpoint of " in caplog.text
    assert all(backfilled(connection) for connection in connections)
    for connection in connections:
        connection.close()


@pytest.fixture
def durable(tmp_path: Path, disk: Disk) -> Iterator[Connection]:
    connection = sqlite.connect(tmp_path / "data.sqlite3", synchronous="FULL")
    connection.execute("CREATE TABLE t (a)")
    connection.commit()
    disk.synced.clear()
    yield connection
    connection.close()


@linux
def test_full_syncs_the_log_at_each_commit_and_at_nothing_else(
    durable: Connection, disk: Disk
) -> None:
    durable.execute("SELECT * FROM t").fetchall()
    durable.commit()
    durable.execute("INSERT INTO t VALUES (1)")
    durable.rollback()
    assert disk.synced == []
    durable.execute("INSERT INTO t VALUES (1)")
    assert disk.synced == []
    durable.commit()
    assert disk.synced == ["data.sqlite3-wal"]
    durable.executescript("INSERT INTO t VALUES (2);")
    durable.isolation_level = None
    durable.execute("INSERT INTO t VALUES (3)")
    assert len(disk.synced) == 3


@linux
def test_full_does_what_waits_for_the_commit_after_the_sync(
    durable: Connection, disk: Disk
) -> None:
    durable.execute("INSERT INTO t VALUES (1)")
    seen: list[int] = []
    durable.after_commit(lambda: seen.append(len(disk.synced)))
    durable.commit()
    assert seen == [1]


@linux
def test_full_lets_the_next_one_write_while_it_syncs(
    durable: Connection, disk: Disk, tmp_path: Path
) -> None:
    other = sqlite.connect(tmp_path / "data.sqlite3")
    disk.seconds = 1.0
    durable.execute("INSERT INTO t VALUES (1)")
    thread = threading.Thread(target=durable.commit)
    thread.start()
    assert eventually(lambda: bool(disk.synced))
    other.execute("INSERT INTO t VALUES (2)")
    other.commit()
    assert thread.is_alive()
    thread.join()
    other.close()


@linux
def test_writers_that_wait_for_a_sync_share_the_next_one(
    durable: Connection, disk: Disk, tmp_path: Path
) -> None:
    disk.seconds = 0.5
    start = threading.Barrier(6)

    def write() -> None:
        own = sqlite.connect(tmp_path / "data.sqlite3", synchronous="FULL")
        start.wait()
        own.execute("INSERT INTO t VALUES (1)")
        own.commit()
        own.close()

    threads = [threading.Thread(target=write) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 2 <= len(disk.synced) < 6
    assert durable.execute("SELECT count(*) FROM t").fetchone() == (6,)


@linux
def test_a_disk_that_fails_to_sync_is_an_error_of_the_commit(
    durable: Connection, disk: Disk
) -> None:
    disk.broken = True
    done: list[str] = []
    durable.execute("INSERT INTO t VALUES (1)")
    durable.after_commit(lambda: done.append("the commit stands"))
    with pytest.raises(StoreError, match=r"data\.sqlite3-wal.*Check the disk"):
        durable.commit()
    assert done == ["the commit stands"]
    disk.broken = False
    durable.execute("INSERT INTO t VALUES (2)")  # the write lock is free, the connection whole
    durable.commit()
    assert durable.execute("SELECT count(*) FROM t").fetchone() == (2,)


def test_a_file_that_need_not_be_synced_has_no_syncer(tmp_path: Path) -> None:
    connection = sqlite.connect(tmp_path / "loose.sqlite3", synchronous="OFF")
    connection.execute("CREATE TABLE t (a)")
    connection.commit()
    assert "litestack-sync loose.sqlite3" not in syncers()
    connection.close()

"""Transactions, as a DB-API user sees them."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from flask_litestack import sqlite
from flask_litestack.errors import (
    DiskFullError,
    LockTimeout,
    ReadOnlyError,
    SelfDeadlock,
    StaleSnapshotError,
    TransactionError,
)
from flask_litestack.sqlite import driver
from flask_litestack.sqlite.connection import Connection
from tests.disks import fill, small_disk
from tests.interrupts import interrupt_often


def count(connection: Connection) -> int:
    return connection.execute("SELECT count(*) FROM item").fetchone()[0]


def in_thread(function: object) -> None:
    """Run a function in another thread, whose locks are not this thread's."""
    thread = threading.Thread(target=function)  # type: ignore[arg-type]
    thread.start()
    thread.join()


def test_pragmas_in_effect(connection: Connection) -> None:
    def pragma(name: str) -> object:
        return connection.execute(f"PRAGMA {name}").fetchone()[0]

    assert pragma("journal_mode") == "wal"
    assert pragma("synchronous") == 1
    assert pragma("foreign_keys") == 1
    assert pragma("mmap_size") == 0
    assert pragma("journal_size_limit") == 16 * 1024 * 1024


def test_a_read_leaves_no_transaction_behind(connection: Connection, other: Connection) -> None:
    assert count(connection) == 100
    assert not connection.in_transaction
    other.execute("DELETE FROM item WHERE id = 1")
    other.commit()
    assert count(connection) == 99


def test_a_write_is_seen_by_others_only_after_its_commit(
    connection: Connection, other: Connection
) -> None:
    connection.execute("DELETE FROM item")
    assert connection.in_transaction
    assert count(connection) == 0
    assert count(other) == 100
    connection.commit()
    assert count(other) == 0


def test_ddl_rolls_back(connection: Connection) -> None:
    connection.execute("CREATE TABLE more (a)")
    connection.rollback()
    with pytest.raises(driver.OperationalError, match="no such table"):
        connection.execute("SELECT * FROM more")


def test_reading_then_writing_never_finds_a_stale_snapshot(
    connection: Connection, other: Connection
) -> None:
    """The deferred BEGIN of other set-ups fails here at once, whatever the timeout."""
    for _ in range(20):
        n = count(connection)
        other.execute("DELETE FROM item WHERE id = (SELECT max(id) FROM item)")
        other.commit()
        connection.execute("INSERT INTO item (n) VALUES (?)", (1000 + n,))
        connection.commit()
        connection.execute("DELETE FROM item WHERE n >= 1000")
        connection.commit()


def test_a_half_read_result_does_not_pin_an_old_state(
    connection: Connection, other: Connection
) -> None:
    half_read = connection.execute("SELECT id FROM item")
    assert half_read.fetchone() == (1,)
    other.execute("DELETE FROM item WHERE id > 50")
    other.commit()
    assert count(connection) == 50
    connection.execute("DELETE FROM item WHERE id > 40")  # BUSY_SNAPSHOT, were it pinned
    connection.commit()
    assert len(half_read.fetchall()) == 99


def test_a_half_read_result_does_not_keep_the_log_from_being_checkpointed(
    connection: Connection, other: Connection
) -> None:
    half_read = connection.execute("SELECT id FROM item")
    half_read.fetchone()
    other.execute("DELETE FROM item")
    other.commit()
    busy, frames, done = other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    assert (busy, frames, done) == (0, 0, 0)


def test_a_half_read_returning_does_not_make_the_commit_fail(
    connection: Connection, other: Connection
) -> None:
    cursor = connection.execute("UPDATE item SET n = n + 1000 RETURNING id")
    assert cursor.fetchone() == (1,)
    connection.commit()
    assert other.execute("SELECT min(n) FROM item").fetchone() == (1000,)


def test_a_cursor_reads_like_the_drivers(connection: Connection) -> None:
    cursor = connection.execute("SELECT id FROM item ORDER BY id")
    assert cursor.fetchone() == (1,)
    assert cursor.fetchmany(2) == [(2,), (3,)]
    assert next(cursor) == (4,)
    assert cursor.fetchmany() == [(5,)]
    assert len(cursor.fetchall()) == 95
    assert cursor.fetchone() is None
    assert cursor.fetchall() == []
    assert list(cursor) == []


def test_an_integrity_error_leaves_the_transaction_open_for_the_caller(
    connection: Connection,
) -> None:
    connection.execute("DELETE FROM item WHERE id = 1")
    with pytest.raises(driver.IntegrityError):
        connection.execute("INSERT INTO item (n) VALUES (5)")
    assert connection.in_transaction
    connection.commit()
    assert count(connection) == 99


def test_executemany_takes_a_generator(connection: Connection) -> None:
    connection.executemany("INSERT INTO item (n) VALUES (?)", ((n,) for n in range(200, 300)))
    connection.commit()
    assert count(connection) == 200


def test_executescript_commits_first_and_honours_its_own_transaction(
    connection: Connection, other: Connection
) -> None:
    connection.execute("DELETE FROM item WHERE id = 1")
    connection.executescript("BEGIN; DELETE FROM item WHERE id = 2;")
    assert count(other) == 99
    assert connection.in_transaction
    connection.commit()
    assert count(other) == 98
    other.execute("DELETE FROM item")  # the turn was given back
    other.commit()


def test_executescript_on_a_closed_cursor_gives_its_turn_back(
    connection: Connection, other: Connection
) -> None:
    cursor = connection.cursor()
    cursor.close()
    with pytest.raises(driver.ProgrammingError, match="closed"):
        cursor.executescript("DELETE FROM item;")
    other.execute("DELETE FROM item WHERE id = 1")
    other.commit()
    assert count(connection) == 99


def test_executescript_that_fails_half_way_gives_its_turn_back(
    connection: Connection, other: Connection
) -> None:
    with pytest.raises(driver.IntegrityError):
        connection.executescript("DELETE FROM item WHERE id = 1; INSERT INTO item (n) VALUES (5);")
    other.execute("DELETE FROM item WHERE id = 2")
    other.commit()
    assert count(connection) == 98


HOLD = """
import sys, time
from flask_litestack import sqlite
from flask_litestack.sqlite import driver
connect = {"ours": sqlite.connect, "foreign": driver.module.connect}[sys.argv[2]]
connection = connect(sys.argv[1])
connection.execute("BEGIN IMMEDIATE")
print("held", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("way", ["execute", "executescript"])
@pytest.mark.parametrize("kind", ["ours", "foreign"])
def test_a_statement_of_its_own_waits_in_vain_for_a_holder_whom_it_names(
    path: Path, other: Connection, way: str, kind: str
) -> None:
    other.isolation_level = None
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path), kind], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        named = f"process {holder.pid} " if kind == "ours" else "not one of this stack's"
        for _ in range(2):  # the first one has not put itself in the holder's place
            with pytest.raises(LockTimeout, match=named):
                getattr(other, way)("DELETE FROM item")
        holder.kill()
    getattr(other, way)("DELETE FROM item")
    assert count(other) == 0


def test_lone_statements_run_outside_a_transaction(connection: Connection) -> None:
    connection.execute("VACUUM")
    connection.execute("PRAGMA optimize")
    assert not connection.in_transaction
    assert not connection.writing


def test_writing_pragmas_belong_to_the_transaction(connection: Connection) -> None:
    connection.execute("PRAGMA user_version = 7")
    assert connection.in_transaction
    connection.rollback()
    assert connection.execute("PRAGMA user_version").fetchone() == (0,)


def test_autocommit_commits_each_statement(connection: Connection, other: Connection) -> None:
    connection.isolation_level = None
    connection.execute("DELETE FROM item WHERE id = 1")
    assert not connection.in_transaction
    assert count(other) == 99
    connection.isolation_level = ""
    connection.execute("DELETE FROM item")
    assert connection.in_transaction
    connection.rollback()
    assert count(other) == 99


def test_a_savepoint_in_autocommit_commits_when_it_is_released(
    connection: Connection, other: Connection
) -> None:
    connection.isolation_level = None
    done: list[str] = []
    connection.execute("SAVEPOINT one")
    connection.execute("DELETE FROM item")
    connection.after_commit(lambda: done.append("committed"))
    assert done == []
    connection.execute("RELEASE one")
    assert done == ["committed"]
    assert count(other) == 0
    assert not connection.writing


def test_the_users_own_begin_immediate_takes_the_queue(
    connection: Connection, other: Connection
) -> None:
    connection.execute("BEGIN IMMEDIATE")
    assert connection.writing
    connection.execute("DELETE FROM item")
    connection.execute("COMMIT")
    assert not connection.writing
    assert count(other) == 0


def test_the_users_own_rollback_gives_the_lock_back(
    connection: Connection, other: Connection
) -> None:
    connection.execute("DELETE FROM item")
    connection.execute("rollback")
    assert not connection.writing
    other.execute("DELETE FROM item WHERE id = 1")
    other.commit()
    assert count(connection) == 99


def test_the_users_own_begin_can_write_while_its_snapshot_is_the_latest(
    connection: Connection, other: Connection
) -> None:
    connection.execute("BEGIN")
    count(connection)
    connection.execute("DELETE FROM item")
    assert connection.writing
    connection.commit()
    assert count(other) == 0


def test_the_users_own_begin_says_plainly_that_its_snapshot_is_stale(
    connection: Connection, other: Connection
) -> None:
    connection.execute("BEGIN")
    count(connection)
    other.execute("DELETE FROM item WHERE id = 1")
    other.commit()
    with pytest.raises(StaleSnapshotError, match="BEGIN IMMEDIATE"):
        connection.execute("DELETE FROM item")
    connection.rollback()
    assert not connection.writing
    connection.execute("DELETE FROM item")
    connection.commit()


def test_a_second_connection_of_the_same_thread_is_told_at_once_where_both_began(
    connection: Connection, other: Connection
) -> None:
    connection.execute("DELETE FROM item")
    with pytest.raises(SelfDeadlock) as caught:
        other.execute("DELETE FROM item")
    assert str(caught.value).count("test_connection.py") == 2
    connection.rollback()
    other.execute("DELETE FROM item")
    other.commit()


def test_a_wait_for_the_lock_ends_with_who_has_it(
    connection: Connection, other: Connection
) -> None:
    connection.execute("DELETE FROM item")
    caught: list[BaseException] = []

    def write() -> None:
        try:
            other.execute("DELETE FROM item")
        except LockTimeout as error:
            caught.append(error)

    in_thread(write)
    assert f"process {os.getpid()}" in str(caught[0])
    assert "within 0.2 s" in str(caught[0])
    connection.rollback()
    in_thread(write)
    assert len(caught) == 1
    assert count(other) == 0


def test_begin_immediate_keeps_what_is_read_true_until_the_commit(
    connection: Connection, other: Connection
) -> None:
    connection.begin_immediate()
    connection.begin_immediate()
    n = count(connection)
    failed: list[BaseException] = []

    def write() -> None:
        try:
            other.execute("DELETE FROM item")
        except LockTimeout as error:
            failed.append(error)

    in_thread(write)
    assert failed
    assert count(connection) == n
    connection.commit()


def test_a_snapshot_stays_the_same_and_streams(connection: Connection, other: Connection) -> None:
    snapshot = connection.begin_read()
    rows = iter(connection.execute("SELECT id FROM item ORDER BY id"))
    assert next(rows) == (1,)
    other.execute("DELETE FROM item")
    other.commit()
    assert count(connection) == 100
    assert len(list(rows)) == 99
    connection.end_read(snapshot)
    assert count(connection) == 0


def test_the_snapshot_is_of_its_beginning_not_of_its_first_query(
    connection: Connection, other: Connection
) -> None:
    snapshot = connection.begin_read()
    other.execute("DELETE FROM item")
    other.commit()
    assert count(connection) == 100
    connection.end_read(snapshot)


@pytest.mark.parametrize(
    "sql", ["DELETE FROM item", "SAVEPOINT a", "BEGIN IMMEDIATE", "VACUUM", "CREATE TABLE a (b)"]
)
def test_a_snapshot_refuses_to_write(connection: Connection, sql: str) -> None:
    snapshot = connection.begin_read()
    with pytest.raises(ReadOnlyError, match=r"db\.write"):
        connection.execute(sql)
    connection.end_read(snapshot)


def test_a_snapshot_refuses_a_script_and_goes_on(connection: Connection, other: Connection) -> None:
    snapshot = connection.begin_read()
    with pytest.raises(ReadOnlyError, match=r"db\.write"):
        connection.executescript("DELETE FROM item;")
    other.execute("DELETE FROM item")
    other.commit()
    assert count(connection) == 100
    connection.end_read(snapshot)
    connection.execute("INSERT INTO item (n) VALUES (1)")
    connection.commit()


def test_the_end_of_an_older_snapshot_leaves_the_present_one_alone(
    connection: Connection, other: Connection
) -> None:
    older = connection.begin_read()
    connection.rollback()
    snapshot = connection.begin_read()
    connection.end_read(older)
    other.execute("DELETE FROM item")
    other.commit()
    assert count(connection) == 100
    connection.end_read(snapshot)
    assert count(connection) == 0


def test_a_half_streamed_result_is_closed_with_its_snapshot(
    connection: Connection, other: Connection
) -> None:
    snapshot = connection.begin_read()
    half_read = connection.execute("SELECT id FROM item")
    half_read.fetchone()
    connection.end_read(snapshot)
    with pytest.raises(driver.ProgrammingError):
        half_read.fetchone()
    connection.execute("DELETE FROM item")
    connection.commit()


def test_a_transaction_that_sqlite_rolled_back_does_not_go_on_as_another(
    connection: Connection, other: Connection
) -> None:
    """Otherwise the second half of it would be committed without the first."""
    done: list[str] = []
    connection.execute("DELETE FROM item WHERE id = 1")
    connection.after_commit(lambda: done.append("never"))
    with pytest.raises(driver.IntegrityError):
        connection.execute("INSERT OR ROLLBACK INTO item (n) VALUES (5)")
    with pytest.raises(TransactionError, match="rollback"):
        connection.execute("DELETE FROM item WHERE id = 2")
    with pytest.raises(TransactionError, match="nothing of it is stored"):
        connection.commit()
    connection.rollback()
    assert done == []
    assert count(other) == 100
    connection.execute("DELETE FROM item WHERE id = 2")
    connection.commit()
    assert count(other) == 99


def refer_to_nothing(connection: Connection) -> None:
    """Write a row that is found wrong at the commit."""
    connection.execute(
        "CREATE TABLE note (item INTEGER REFERENCES item (id) DEFERRABLE INITIALLY DEFERRED)"
    )
    connection.commit()
    connection.execute("INSERT INTO note VALUES (1000)")


def test_a_commit_that_fails_has_rolled_back(connection: Connection, other: Connection) -> None:
    """SQLAlchemy rolls nothing back after it, and would lend the connection as it is."""
    done: list[str] = []
    refer_to_nothing(connection)
    connection.after_commit(lambda: done.append("never"), failed=lambda: done.append("failed"))

    with pytest.raises(driver.IntegrityError):
        connection.commit()

    assert not connection.in_transaction
    assert done == ["failed"]
    other.execute("DELETE FROM item WHERE id = 1")
    other.commit()
    connection.commit()
    assert done == ["failed"]
    assert connection.execute("SELECT count(*) FROM note").fetchone() == (0,)


def test_the_commit_of_what_sqlite_rolled_back_ends_it(connection: Connection) -> None:
    connection.execute("DELETE FROM item WHERE id = 1")
    with pytest.raises(driver.IntegrityError):
        connection.execute("INSERT OR ROLLBACK INTO item (n) VALUES (5)")
    with pytest.raises(TransactionError, match="nothing of it is stored"):
        connection.commit()

    connection.execute("DELETE FROM item WHERE id = 2")
    connection.commit()

    assert count(connection) == 99


def test_an_interrupt_before_the_commit_rolls_back(
    connection: Connection, other: Connection
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    connection.execute("DELETE FROM item")
    connection.after_commit(lambda: None, before=interrupt)
    with pytest.raises(KeyboardInterrupt):
        connection.commit()

    assert not connection.in_transaction
    assert count(other) == 100


@pytest.mark.parametrize("way", ["transaction", "autocommit", "script", "plain begin"])
def test_interrupts_at_any_moment_lose_no_turn_and_no_lock(
    path: Path, connection: Connection, way: str
) -> None:
    local = threading.local()

    def work() -> None:
        if not hasattr(local, "own"):
            local.own = sqlite.connect(path, busy_timeout=30.0)
        if way == "script":
            local.own.executescript("UPDATE item SET n = -n WHERE id = 1;")
            return
        if way == "autocommit":
            local.own.isolation_level = None
        elif way == "plain begin":
            local.own.execute("BEGIN")
        local.own.execute("UPDATE item SET n = -n WHERE id = 1")
        local.own.commit()

    def mend() -> None:
        if hasattr(local, "own"):
            local.own.rollback()

    interrupt_often(work, mend, threads=2, times=150)
    patient = sqlite.connect(path, busy_timeout=1.0)
    patient.execute("DELETE FROM item")
    patient.commit()
    patient.close()
    assert count(connection) == 0


def test_a_full_disk_is_an_error_that_damages_nothing(
    path: Path, connection: Connection, other: Connection
) -> None:
    connection.execute("CREATE TABLE big (data BLOB)")
    connection.commit()
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {pages + 5}")
    with pytest.raises(DiskFullError, match=f"{path} to grow .*full.* its disk has [0-9]+ bytes"):
        connection.execute("INSERT INTO big VALUES (zeroblob(1000000))")
    connection.rollback()
    assert other.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.execute("INSERT INTO big VALUES (zeroblob(100))")
    connection.commit()
    assert other.execute("SELECT count(*) FROM big").fetchone() == (1,)


@pytest.mark.parametrize("is_new", [True, False])
def test_the_first_connection_on_a_full_disk_says_so(tmp_path: Path, is_new: bool) -> None:
    """SQLite says "disk I/O error" if it has no room for the files beside the database."""
    with small_disk(tmp_path, 1 << 20) as disk:
        path = disk / "data.sqlite3"
        if not is_new:
            # The driver's own connection: ours would keep a file open on the disk.
            made = driver.module.connect(path)
            made.execute("PRAGMA journal_mode = WAL")
            made.execute("CREATE TABLE t (a)")
            made.close()
        fill(disk / "ballast")
        with pytest.raises(DiskFullError, match=f"{path} .* 0 bytes free") as caught:
            sqlite.connect(path)
    assert isinstance(caught.value, driver.OperationalError)
    assert caught.value.sqlite_errorcode == 13


def test_an_io_error_of_a_disk_with_room_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(driver.OperationalError, match="unable to open") as caught:
        sqlite.connect(tmp_path / "missing" / "data.sqlite3")
    assert not isinstance(caught.value, DiskFullError)


def test_a_lost_connection_gives_its_turn_back(path: Path, connection: Connection) -> None:
    lost = sqlite.connect(path)
    lost.execute("DELETE FROM item")
    del lost
    connection.execute("DELETE FROM item WHERE id = 1")
    connection.commit()
    assert count(connection) == 99


def test_a_closed_connection_gives_its_turn_back(path: Path, connection: Connection) -> None:
    closed = sqlite.connect(path)
    closed.execute("DELETE FROM item")
    closed.close()
    closed.close()
    connection.execute("DELETE FROM item WHERE id = 1")
    connection.commit()
    assert count(connection) == 99
    with pytest.raises(driver.ProgrammingError, match="closed"):
        closed.execute("SELECT 1")


def test_a_long_hold_is_logged_with_the_place_of_its_first_write(
    connection: Connection, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flask_litestack.process.writequeue.LONG_HOLD", 0.0)
    with caplog.at_level(logging.WARNING):
        connection.execute("DELETE FROM item")
        connection.commit()
    assert "held the write lock of data.sqlite3" in caplog.text
    assert "test_a_long_hold_is_logged" in caplog.text


def test_a_read_only_file_can_be_read(path: Path, connection: Connection) -> None:
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    read_only = driver.module.connect(f"file:{path}?mode=ro", uri=True, factory=Connection)
    read_only.tune(busy_timeout=1, synchronous="NORMAL", watch=True, describe=None)
    assert count(read_only) == 100
    with pytest.raises(driver.OperationalError, match="readonly"):
        read_only.execute("DELETE FROM item")
    read_only.close()


def test_a_child_process_leaves_its_parents_connection_alone(
    connection: Connection, other: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    connection.execute("DELETE FROM item WHERE id = 1")
    pid = os.fork()
    if pid == 0:
        failures = 0
        for use in (
            lambda: connection.execute("SELECT 1"),
            lambda: connection.commit(),
            lambda: connection.begin_immediate(),
        ):
            try:
                use()
            except TransactionError as error:
                failures += "parent process" in str(error)
        connection.rollback()
        connection.close()
        os._exit(0 if failures == 3 else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert "a fork in the middle of a write to" in caplog.text
    connection.commit()
    assert count(other) == 99


def test_a_child_process_can_write_with_a_connection_of_its_own(
    path: Path, connection: Connection
) -> None:
    connection.execute("DELETE FROM item WHERE id = 1")
    connection.commit()
    pid = os.fork()
    if pid == 0:
        own = sqlite.connect(path)
        own.execute("DELETE FROM item WHERE id = 2")
        own.commit()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert count(connection) == 98
    connection.execute("DELETE FROM item WHERE id = 3")
    connection.commit()
    assert count(connection) == 97

"""A full disk is an error that damages nothing, and is over once there is room again."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import func, select
from sqlalchemy.exc import OperationalError

from flask_litestack.errors import LockTimeout
from tests.conftest import Comment, Post
from tests.disks import fill as fill_up
from tests.disks import small_disk

from .crowd import Voice, make_app, members

SIZE = 4 * 1024 * 1024


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 4 MiB."""
    with small_disk(tmp_path, SIZE) as disk:
        yield disk


def fill(voice: Voice, data: Path) -> None:
    """Commit comments until one is refused; go on when told that there is room."""
    app, litestack = make_app(data)
    with app.app_context():
        litestack.db.create_all()
        session = litestack.db.session
        session.add(Post(id=1, title="First"))
        session.commit()
        stored = 0
        while True:
            session.add(Comment(post_id=1, text="x" * 20_000))
            try:
                session.commit()
            except OperationalError as error:
                session.rollback()
                voice.say(str(error))
                break
            stored += 1
        voice.say(stored)
        voice.say(session.scalar(select(func.count()).select_from(Comment)))
        if voice.hear() != "there is room":
            return
        session.add(Comment(post_id=1, text="y"))
        session.commit()
        voice.say(session.scalar(select(func.count()).select_from(Comment)))


def check(voice: Voice, data: Path) -> None:
    app, litestack = make_app(data)
    with app.app_context():
        connection = litestack.db.connect()
        voice.say(connection.execute("PRAGMA integrity_check").fetchone()[0])
        voice.say(connection.execute("SELECT COUNT(*) FROM comment").fetchone()[0])


def test_a_full_disk_is_an_error_and_over_when_there_is_room(disk: Path) -> None:
    data = disk / "data"
    filler = disk / "filler"
    filler.write_bytes(b"x" * (SIZE // 3))
    with members(1, fill, data) as [writer]:
        assert f"no room for {data}/data.sqlite3 to grow" in writer.hear()
        stored = writer.hear()
        assert stored > 10
        assert writer.hear() == stored
        with members(1, check, data) as [other]:
            assert other.heard() == ["ok", stored]
        filler.unlink()
        writer.say("there is room")
        assert writer.heard() == [stored + 1]
    with members(1, check, data) as [other]:
        assert other.heard() == ["ok", stored + 1]


def test_a_process_killed_on_a_full_disk_leaves_a_whole_file(disk: Path) -> None:
    data = disk / "data"
    with members(1, fill, data) as [writer]:
        writer.hear()
        stored = writer.hear()
        os.kill(writer.pid, signal.SIGKILL)
    with members(1, check, data) as [other]:
        assert other.heard() == ["ok", stored]


def wait_for_the_lock(voice: Voice, data: Path) -> None:
    """Wait for the write lock, in vain and then not, when told to."""
    app, litestack = make_app(data, busy_timeout=0.3)
    voice.say("started")
    voice.hear()
    with app.app_context():
        session = litestack.db.session
        for _ in range(2):
            try:
                with litestack.db.write():
                    voice.say(session.scalar(select(func.count()).select_from(Post)))
            except LockTimeout as error:
                voice.say(str(error))
            voice.hear()


@pytest.mark.parametrize("opens_late", [False, True])
def test_who_waits_for_the_write_lock_on_a_full_disk_is_not_killed(
    disk: Path, opens_late: bool
) -> None:
    data = disk / "data"
    app, litestack = make_app(data)
    with app.app_context(), members(1, wait_for_the_lock, data) as [waiter]:
        assert waiter.hear() == "started"
        litestack.db.create_all()
        if opens_late:
            for file in (data / "run").iterdir():
                file.unlink()
        fill_up(disk / "filler")
        connection = litestack.db.connect()
        connection.begin_immediate()
        waiter.say("go")
        known = "not one of this stack's" if opens_late else f"process {os.getpid()}"
        assert known in waiter.hear()
        connection.rollback()
        connection.close()
        waiter.say("go on")
        assert waiter.hear() == 0


def fill_within_a_limit(voice: Voice, data: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE // 2, SIZE // 2))
    fill(voice, data)


def test_a_file_that_may_not_grow_is_an_error_that_damages_nothing(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with members(1, fill_within_a_limit, data) as [writer]:
        writer.hear()  # the message is SQLite's: a disk I/O error
        stored = writer.hear()
        assert stored > 10
        assert writer.hear() == stored
        writer.say("end")
        assert writer.heard() == []
    with members(1, check, data) as [other]:
        assert other.heard() == ["ok", stored]

"""Several processes on one database: nobody is refused, nothing is lost, readers are free."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from flask_litestack import LockTimeout
from tests.conftest import Comment, Post

from .crowd import Voice, make_app, members, together

PROCESSES = 8
TURNS = 60


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    """A data folder whose database has one post."""
    data = tmp_path / "data"
    app, litestack = make_app(data)
    with app.app_context():
        litestack.db.create_all()
        with litestack.db.write() as session:
            session.add(Post(id=1, title="First"))
        yield data
        litestack.db.engine.dispose()


def read_then_write(voice: Voice, data: Path) -> None:
    app, litestack = make_app(data)
    voice.say("ready")
    voice.hear()
    for number in range(TURNS):
        with app.app_context():
            session = litestack.db.session
            post = session.get_one(Post, 1)
            session.scalar(select(func.count()).select_from(Comment))
            session.add(Comment(post=post, text=f"{os.getpid()} {number}"))
            session.commit()
    voice.say("done")


def test_transactions_that_read_and_then_write_are_never_refused(data: Path) -> None:
    assert together(PROCESSES, read_then_write, data) == ["done"] * PROCESSES
    assert count(data, Comment) == PROCESSES * TURNS


def add_views_in_write(voice: Voice, data: Path) -> None:
    app, litestack = make_app(data)
    voice.say("ready")
    voice.hear()
    with app.app_context():
        # Loaded once, before every block: what write() must not leave stale.
        post = litestack.db.session.get_one(Post, 1)
        for _ in range(TURNS):
            with litestack.db.write():
                post.views += 1
    voice.say("done")


def add_views_for_update(voice: Voice, data: Path) -> None:
    app, litestack = make_app(data)
    voice.say("ready")
    voice.hear()
    for _ in range(TURNS):
        with app.app_context():
            session = litestack.db.session
            assert session.get(Post, 1) is not None
            session.get_one(Post, 1, with_for_update=True).views += 1
            session.commit()
    voice.say("done")


@pytest.mark.parametrize("add_views", [add_views_in_write, add_views_for_update])
def test_no_update_is_lost(data: Path, add_views: Any) -> None:
    together(PROCESSES, add_views, data)
    assert views(data) == PROCESSES * TURNS


def read_and_stay(voice: Voice, data: Path, how: str) -> None:
    """Read, and keep the session open as a slow request does; read again when told to."""
    app, litestack = make_app(data, busy_timeout=0)
    with app.app_context():
        if how == "session":
            voice.say(litestack.db.session.scalar(select(Post.views)))
            voice.hear()
            voice.say(litestack.db.session.scalar(select(Post.views)))
        else:
            with litestack.db.read() as session:
                voice.say(session.scalar(select(Post.views)))
                voice.hear()
                voice.say(session.scalar(select(Post.views)))


@pytest.mark.parametrize(("how", "sees"), [("session", 1), ("snapshot", 0)])
def test_a_reader_makes_no_writer_wait(data: Path, how: str, sees: int) -> None:
    app, litestack = make_app(data, busy_timeout=0)  # having to wait at all is an error
    with members(1, read_and_stay, data, how) as [reader], app.app_context():
        assert reader.hear() == 0
        with litestack.db.write() as session:
            session.get_one(Post, 1).views += 1
        reader.say("again")
        assert reader.hear() == sees
        litestack.db.engine.dispose()


def write_and_stay(voice: Voice, data: Path) -> None:
    app, litestack = make_app(data)
    with app.app_context(), litestack.db.write() as session:
        session.get_one(Post, 1).views = 7
        session.flush()
        voice.say("written")
        voice.hear()


def test_a_writer_makes_no_reader_wait(data: Path) -> None:
    app, litestack = make_app(data, busy_timeout=0)
    with members(1, write_and_stay, data) as [writer]:
        assert writer.hear() == "written"
        with app.app_context():
            assert litestack.db.session.scalar(select(Post.views)) == 0
        with app.app_context(), litestack.db.read() as session:
            assert session.scalar(select(Post.views)) == 0
        writer.say("commit")
        assert writer.heard() == []
        with app.app_context():
            assert litestack.db.session.scalar(select(Post.views)) == 7
            litestack.db.engine.dispose()


def test_the_lock_of_a_stopped_process_is_an_error_that_names_it(data: Path) -> None:
    app, litestack = make_app(data, busy_timeout=0.3)
    with members(1, write_and_stay, data) as [writer]:
        writer.hear()
        os.kill(writer.pid, signal.SIGSTOP)
        wait_until_stopped(writer.pid)
        with app.app_context():
            message = rf"process {writer.pid} .*stopped"
            with pytest.raises(LockTimeout, match=message), litestack.db.write():
                pass
            litestack.db.session.add(Post(title="Second"))
            with pytest.raises(LockTimeout, match=message):
                litestack.db.session.commit()
            litestack.db.session.rollback()
            os.kill(writer.pid, signal.SIGCONT)
            writer.say("commit")
            assert writer.heard() == []
            with litestack.db.write() as session:
                assert session.get_one(Post, 1).views == 7
        with app.app_context():
            litestack.db.engine.dispose()


def test_the_lock_of_a_killed_process_is_free_at_once(data: Path) -> None:
    app, litestack = make_app(data, busy_timeout=0)
    with members(1, write_and_stay, data) as [writer]:
        writer.hear()
        os.kill(writer.pid, signal.SIGKILL)
        writer.process.join()
        with app.app_context():
            with litestack.db.write() as session:
                assert session.get_one(Post, 1).views == 0
            litestack.db.engine.dispose()


def wait_for_the_lock(voice: Voice, data: Path) -> None:
    app, litestack = make_app(data, busy_timeout=30)
    with app.app_context():
        assert litestack.db.session.get(Post, 1) is not None
        voice.say("waits")
        with litestack.db.write() as session:
            session.get_one(Post, 1).views += 1
    voice.say("done")


def test_those_who_wait_go_on_when_the_holder_is_killed(data: Path) -> None:
    with members(1, write_and_stay, data) as [holder]:
        assert holder.hear() == "written"
        with members(3, wait_for_the_lock, data) as crowd:
            for member in crowd:
                assert member.hear() == "waits"
            gone = crowd.pop()  # one of those who wait goes away, too
            gone.process.kill()
            gone.process.join()
            os.kill(holder.pid, signal.SIGKILL)
            assert [member.hear() for member in crowd] == ["done", "done"]
    assert views(data) == 2


def count(data: Path, model: Any) -> int:
    app, litestack = make_app(data)
    with app.app_context():
        found = litestack.db.session.scalar(select(func.count()).select_from(model))
        litestack.db.close_session()
        litestack.db.engine.dispose()
        return found or 0


def views(data: Path) -> int:
    app, litestack = make_app(data)
    with app.app_context():
        found = litestack.db.session.get_one(Post, 1).views
        litestack.db.close_session()
        litestack.db.engine.dispose()
        return found


def wait_until_stopped(pid: int) -> None:
    for _ in range(1000):
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T":
            return
        time.sleep(0.005)
    raise AssertionError(f"process {pid} did not stop")

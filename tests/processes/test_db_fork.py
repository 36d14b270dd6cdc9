"""gunicorn's preload_app, multiprocessing: a child shares nothing with its parent's database."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.exc import OperationalError

from flask_litestack import LockTimeout
from tests.conftest import Post

from .crowd import PATIENCE, Voice, make_app, members


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder with a database."""
    data = tmp_path / "data"
    app, litestack = make_app(data)
    with app.app_context():
        litestack.db.create_all()
        litestack.db.engine.dispose()
    return data


def wait_for(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def posts(voice: Voice, data: Path) -> None:
    app, litestack = make_app(data)
    with app.app_context():
        connection = litestack.db.connect()
        voice.say(connection.execute("PRAGMA integrity_check").fetchone()[0])
        voice.say([row[0] for row in connection.execute("SELECT id FROM post ORDER BY id")])
        connection.close()


def stored(data: Path) -> list[int]:
    """Look with the eyes of another process, which opens the file and closes it again."""
    with members(1, posts, data) as [other]:
        integrity, numbers = other.heard()
    assert integrity == "ok"
    return list(numbers)


def fork_with_connections_at_rest(voice: Voice, data: Path) -> None:
    app, litestack = make_app(data)
    with app.app_context():
        litestack.db.session.add(Post(id=1, title="of the parent"))
        litestack.db.session.commit()
        assert litestack.db.session.get(Post, 1) is not None  # one in use, two in the pool
        own = litestack.db.connect()
        child = os.fork()
        if not child:
            with app.app_context():
                session = litestack.db.session
                session.add(Post(id=2, title="of the child"))
                session.commit()
                voice.say("written")
                voice.hear()
                session.add(Post(id=3, title="of the child, alone"))
                session.commit()
                voice.say("written again")
                voice.hear()
            os._exit(0)
        litestack.db.close_session()
        litestack.db.engine.dispose()
        own.close()
    wait_for(child)


def test_a_child_has_locks_of_its_own(data: Path) -> None:
    with members(1, fork_with_connections_at_rest, data) as [child]:
        assert child.hear() == "written"
        # The parent has closed the file, and this is the last one to close it but for the child.
        # If the child held no lock, the log would now be deleted under it.
        assert stored(data) == [1, 2]
        child.say("go on")
        assert child.hear() == "written again"
        assert stored(data) == [1, 2, 3]
        child.say("end")


def fork_and_end(voice: Voice, data: Path) -> None:
    app, litestack = make_app(data)
    with app.app_context():
        litestack.db.session.add(Post(id=1, title="of the parent"))
        litestack.db.session.commit()
    for number in range(2, 5):
        child = os.fork()
        if not child:
            with app.app_context():
                litestack.db.session.add(Post(id=number, title="of a child"))
                litestack.db.session.commit()
                litestack.db.engine.dispose()
            gc.collect()
            os._exit(0)
        voice.say(wait_for(child))
    voice.say("go on")
    voice.hear()
    with app.app_context():
        litestack.db.session.add(Post(id=5, title="of the parent again"))
        litestack.db.session.commit()
    voice.say("written")
    voice.hear()


def test_a_child_that_ends_leaves_its_parents_locks_alone(data: Path) -> None:
    with members(1, fork_and_end, data) as [parent]:
        assert [parent.hear() for _ in range(4)] == [0, 0, 0, "go on"]
        assert stored(data) == [1, 2, 3, 4]
        parent.say("write")
        assert parent.hear() == "written"
        assert stored(data) == [1, 2, 3, 4, 5]
        parent.process.kill()
        parent.process.join()
    assert stored(data) == [1, 2, 3, 4, 5]


def fork_while_writing(voice: Voice, data: Path) -> None:
    app, litestack = make_app(data)
    with app.app_context():
        session = litestack.db.session
        with litestack.db.write():
            session.add(Post(id=1, title="of the parent"))
            session.flush()
            child = os.fork()
            if not child:
                voice.say(refusal(lambda: session.get(Post, 2)))
                with app.app_context():
                    voice.say(refusal(lambda: litestack.db.session.get(Post, 2)))
                session.close()
                litestack.db.engine.dispose()
                del session
                gc.collect()
                os._exit(0)
            wait_for(child)
            voice.say("child ended")
            voice.hear()
    voice.say("committed")


def refusal(use: Callable[[], object]) -> str:
    try:
        use()
    except OperationalError as error:
        return str(error)
    return "nothing was refused"


def write_at_once(voice: Voice, data: Path) -> None:
    app, litestack = make_app(data, busy_timeout=0)
    with app.app_context():
        try:
            with litestack.db.write() as session:
                session.add(Post(id=2, title="of another"))
        except LockTimeout:
            voice.say("locked")
        else:
            voice.say("written")


def test_a_child_born_in_the_middle_of_a_write_is_refused_and_ends_nothing(data: Path) -> None:
    with members(1, fork_while_writing, data) as [parent]:
        assert "parent process" in parent.hear()
        assert "was forked in the middle of a write to" in parent.hear()
        assert parent.hear() == "child ended"
        with members(1, write_at_once, data) as [other]:
            assert other.heard() == ["locked"]
        parent.say("commit")
        assert parent.heard() == ["committed"]
    with members(1, write_at_once, data) as [other]:
        assert other.heard() == ["written"]
    assert stored(data) == [1, 2]


def fork_beside_busy_threads(voice: Voice, data: Path, children: int) -> None:
    app, litestack = make_app(data)
    stop = threading.Event()
    with app.app_context():
        # The modules that a first use imports, with locks that a child would inherit.
        litestack.db.session.merge(Post(id=1, title="again and again"))
        litestack.db.session.commit()
        litestack.db.session.scalars(select(Post)).all()

    def write(number: int) -> None:
        while not stop.is_set():
            with app.app_context(), litestack.db.write() as session:
                session.merge(Post(id=number, title="again and again"))

    def read() -> None:
        while not stop.is_set():
            with app.app_context():
                litestack.db.session.scalars(select(Post)).all()

    threads = [threading.Thread(target=write, args=(number,)) for number in (1, 2, 3)]
    threads.append(threading.Thread(target=read))
    for thread in threads:
        thread.start()
    for number in range(10, 10 + children):
        child = os.fork()
        if not child:
            with app.app_context(), litestack.db.write() as session:
                session.add(Post(id=number, title="of a child"))
            os._exit(0)
        voice.say(wait_for(child))
    stop.set()
    for thread in threads:
        thread.join(PATIENCE)
    voice.say([thread.is_alive() for thread in threads])


@pytest.mark.parametrize("children", [20, pytest.param(300, marks=pytest.mark.long)])
def test_a_fork_waits_for_the_other_threads(data: Path, children: int) -> None:
    with members(1, fork_beside_busy_threads, data, children) as [parent]:
        assert [parent.hear() for _ in range(children)] == [0] * children
        assert parent.hear() == [False] * 4
    assert set(stored(data)) >= set(range(10, 10 + children))

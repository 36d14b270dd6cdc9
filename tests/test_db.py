"""The database as an app uses it: sessions, write(), read(), and work after the commit."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import exc, func, select, text, update
from sqlalchemy.orm import Session

from flask_litestack import Litestack
from flask_litestack.errors import (
    ConfigError,
    LockTimeout,
    ReadOnlyError,
    SelfDeadlock,
    TransactionError,
)
from flask_litestack.sqlite.tuning import raw

from .conftest import Comment, Post


def elsewhere(app: Flask, function: Callable[[], Any]) -> list[Any]:
    """Run a function in another thread with an app context of its own; return result or error."""
    outcome: list[Any] = []

    def run() -> None:
        with app.app_context():
            try:
                outcome.append(function())
            except Exception as error:
                outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return outcome


def set_views(litestack: Litestack, views: int) -> Callable[[], None]:
    def change() -> None:
        with litestack.db.write() as session:
            session.get_one(Post, 1).views = views

    return change


def test_a_context_has_one_session_which_ends_with_it(app: Flask, litestack: Litestack) -> None:
    with app.app_context():
        first = litestack.db.session
        assert litestack.db.session is first
        first.add(Post(title="Lost"))
        first.flush()
        with app.app_context():
            assert litestack.db.session is not first
    assert not first.in_transaction()
    with app.app_context():
        assert litestack.db.session.scalar(select(func.count()).select_from(Post)) == 1


def test_a_session_that_only_reads_keeps_nobody_waiting(app: Flask, litestack: Litestack) -> None:
    with app.app_context():
        session = litestack.db.session
        post = session.get_one(Post, 1)
        assert elsewhere(app, set_views(litestack, 5)) == [None]
        session.refresh(post)
        assert post.views == 5
        assert not raw(session.connection()).in_transaction


def test_a_writer_keeps_no_reader_waiting(app: Flask, litestack: Litestack) -> None:
    with app.app_context(), litestack.db.write() as session:
        session.get_one(Post, 1).views = 7
        session.flush()
        assert elsewhere(app, lambda: litestack.db.session.get_one(Post, 1).views) == [0]


def test_write_reloads_what_was_loaded_before_the_lock(app: Flask, litestack: Litestack) -> None:
    """Otherwise session.get() returns the object as it was, and the other's update is lost."""
    with app.app_context():
        post = litestack.db.session.get_one(Post, 1)
        assert post.views == 0
        elsewhere(app, set_views(litestack, 100))
        with litestack.db.write() as session:
            session.get_one(Post, 1).views += 1
        assert post.views == 101


def test_write_reloads_objects_even_if_they_do_not_expire_on_commit(
    app: Flask, litestack: Litestack
) -> None:
    with app.app_context():
        litestack.db.session.expire_on_commit = False
        with litestack.db.write() as session:
            session.get_one(Post, 1).views = 1
        elsewhere(app, set_views(litestack, 100))
        with litestack.db.write() as session:
            session.get_one(Post, 1).views += 1
            assert session.get_one(Post, 1).views == 101


def test_write_commits_at_the_end_and_rolls_back_on_an_error(
    app: Flask, litestack: Litestack
) -> None:
    with app.app_context():
        with litestack.db.write() as session:
            session.add(Post(title="Kept"))

        def fail() -> None:
            with litestack.db.write() as session:
                session.add(Post(title="Lost"))
                session.flush()
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
        titles = litestack.db.session.scalars(select(Post.title)).all()
        assert titles == ["First", "Kept"]
        assert not litestack.db.joins()


def test_write_inside_write_joins_it(app: Flask, litestack: Litestack) -> None:
    with app.app_context():
        with litestack.db.write() as outer:
            outer.add(Post(title="Outer"))
            with litestack.db.write() as inner:
                assert inner is outer
                inner.add(Post(title="Inner"))
            seen = elsewhere(app, lambda: litestack.db.session.scalar(select(func.count(Post.id))))
            assert seen == [1]
        assert litestack.db.session.scalar(select(func.count(Post.id))) == 3


def test_write_inside_an_explicit_begin_leaves_the_commit_to_it(
    app: Flask, litestack: Litestack
) -> None:
    with app.app_context():
        with litestack.db.session.begin():
            with litestack.db.write() as session:
                session.get_one(Post, 1).views = 3
            assert litestack.db.joins()
            assert elsewhere(app, lambda: litestack.db.session.get_one(Post, 1).views) == [0]
        assert elsewhere(app, lambda: litestack.db.session.get_one(Post, 1).views) == [3]


@pytest.mark.parametrize("flush", [False, True])
def test_write_and_read_refuse_changes_made_before_the_lock(
    app: Flask, litestack: Litestack, flush: bool
) -> None:
    with app.app_context():
        session = litestack.db.session
        session.get_one(Post, 1).views += 1
        if flush:
            session.flush()
        for block in (litestack.db.write, litestack.db.read):
            with pytest.raises(TransactionError, match="not committed"), block():
                pass
        session.commit()
        assert session.get_one(Post, 1).views == 1


def test_a_commit_inside_write_ends_the_block(app: Flask, litestack: Litestack) -> None:
    with app.app_context():

        def commit_inside() -> None:
            with litestack.db.write() as session:
                session.commit()
                session.get_one(Post, 1).views = 9  # without the lock, were it allowed

        with pytest.raises(exc.InvalidRequestError, match="closed transaction"):
            commit_inside()
        assert not litestack.db.joins()


def test_read_is_one_state_for_several_queries(app: Flask, litestack: Litestack) -> None:
    with app.app_context():
        with litestack.db.read() as session:
            elsewhere(app, set_views(litestack, 50))
            assert session.get_one(Post, 1).views == 0
            assert session.scalar(select(Post.views)) == 0
        assert litestack.db.session.scalar(select(Post.views)) == 50


def test_read_reloads_what_was_loaded_before(app: Flask, litestack: Litestack) -> None:
    with app.app_context():
        post = litestack.db.session.get_one(Post, 1)
        assert post.views == 0
        elsewhere(app, set_views(litestack, 50))
        with litestack.db.read() as session:
            assert session.get_one(Post, 1).views == 50


def test_objects_of_read_stay_loaded_after_it(app: Flask, litestack: Litestack) -> None:
    with app.app_context():
        with litestack.db.read() as session:
            post = session.get_one(Post, 1)
        elsewhere(app, set_views(litestack, 50))
        assert post.views == 0


def test_read_streams_rows(app: Flask, litestack: Litestack) -> None:
    with app.app_context():
        with litestack.db.write() as session:
            session.add_all(Post(title=f"{n}") for n in range(500))
        with litestack.db.read() as session:
            stream = session.scalars(select(Post.id).execution_options(yield_per=10))
            assert next(stream) == 1
            assert session.connection().connection.dbapi_connection.snapshot is not None
        # closed half-read: the next write is not in anybody's way
        set_views(litestack, 1)()


def test_a_read_left_unfinished_does_not_end_the_snapshot_of_the_next_one(
    app: Flask, litestack: Litestack
) -> None:
    def titles() -> Iterator[str]:
        with litestack.db.read() as session:
            yield from session.scalars(select(Post.title))

    with app.app_context():
        unfinished = titles()
        next(unfinished)
    with app.app_context(), litestack.db.read() as session:
        assert session.scalar(select(Post.views)) == 0
        unfinished.close()
        elsewhere(app, set_views(litestack, 50))
        assert session.scalar(select(Post.views)) == 0


def test_read_refuses_to_write(app: Flask, litestack: Litestack) -> None:
    with app.app_context():
        with litestack.db.read() as session:
            with pytest.raises(exc.OperationalError, match=r"db\.write") as caught:
                session.execute(update(Post).values(views=3))
            assert isinstance(caught.value.orig, ReadOnlyError)
            with pytest.raises(ReadOnlyError), litestack.db.write():
                pass
            with litestack.db.read() as inner:
                assert inner is session
    with app.app_context():
        set_views(litestack, 2)()


def test_a_session_that_ends_inside_read_is_an_error(app: Flask, litestack: Litestack) -> None:
    with app.app_context(), pytest.raises(TransactionError, match=r"inside db\.read"):
        with litestack.db.read() as session:
            session.rollback()


def test_select_for_update_takes_the_lock(app: Flask, litestack: Litestack) -> None:
    app.config["LITESTACK_BUSY_TIMEOUT"] = 0.2
    with app.app_context():
        session = litestack.db.session
        session.scalars(select(Post).where(Post.id == 1).with_for_update()).one()
        assert litestack.db.joins()
        session.rollback()
        session.get_one(Post, 1, with_for_update=True)
        assert raw(session.connection()).writing
        session.rollback()
        session.scalars(select(Post)).all()
        assert not litestack.db.joins()


def test_savepoints_nest_and_roll_back(app: Flask, litestack: Litestack) -> None:
    with app.app_context():
        session = litestack.db.session
        with session.begin_nested():
            session.add(Post(title="One"))
            nested = session.begin_nested()
            session.add(Post(title="Two"))
            nested.rollback()
        session.commit()
        assert session.scalars(select(Post.title)).all() == ["First", "One"]


def test_text_statements_are_told_apart(app: Flask, litestack: Litestack) -> None:
    with app.app_context():
        session = litestack.db.session
        session.execute(text("WITH a AS (SELECT 1) SELECT * FROM a"))
        assert not litestack.db.joins()
        session.execute(text("WITH a AS (SELECT 9) UPDATE post SET views = 9"))
        assert litestack.db.joins()
        session.commit()
        assert session.get_one(Post, 1).views == 9


def test_autocommit_is_honoured_and_our_setting_comes_back(
    app: Flask, litestack: Litestack
) -> None:
    with app.app_context():
        engine = litestack.db.engine
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            dbapi = raw(connection)
            connection.execute(text("UPDATE post SET views = 1"))
            assert not dbapi.in_transaction
        with engine.connect() as connection:
            assert raw(connection) is dbapi
            connection.execute(text("UPDATE post SET views = 2"))
            assert dbapi.in_transaction
            connection.rollback()
        assert litestack.db.session.get_one(Post, 1).views == 1


def test_a_second_session_of_the_same_thread_is_told_at_once(
    app: Flask, litestack: Litestack
) -> None:
    with app.app_context(), litestack.db.write() as session:
        session.get_one(Post, 1).views = 1
        with app.app_context(), pytest.raises(SelfDeadlock, match="on another connection"):
            with litestack.db.write():
                pass


def test_waiting_ends_with_an_error_that_names_the_request(
    app: Flask, litestack: Litestack
) -> None:
    impatient = Flask("impatient")
    impatient.config["LITESTACK_DATA_PATH"] = app.config["LITESTACK_DATA_PATH"]
    impatient.config["LITESTACK_BUSY_TIMEOUT"] = 0.1
    litestack.init_app(impatient)

    @app.post("/edit")
    def edit() -> str:
        with litestack.db.write():
            (error,) = elsewhere(impatient, set_views(litestack, 1))
            return f"{type(error).__name__}: {error}"

    answer = app.test_client().post("/edit").text
    assert answer.startswith(LockTimeout.__name__)
    assert f"process {os.getpid()} (POST /edit) has held it for" in answer
    assert "LITESTACK_BUSY_TIMEOUT" in answer


def test_after_commit_waits_for_the_commit_of_pending_changes(
    app: Flask, litestack: Litestack
) -> None:
    done: list[str] = []
    with app.app_context():
        session = litestack.db.session
        session.add(Post(title="New"))
        litestack.db.after_commit(lambda: done.append("one"))
        session.flush()
        litestack.db.after_commit(lambda: done.append("two"))
        assert done == []
        session.commit()
        assert done == ["one", "two"]


def test_after_commit_runs_at_once_when_nothing_is_open(app: Flask, litestack: Litestack) -> None:
    done: list[str] = []
    with app.app_context():
        litestack.db.after_commit(lambda: done.append("unused session"))
        litestack.db.session.get(Post, 1)
        litestack.db.after_commit(lambda: done.append("only read"))
        assert done == ["unused session", "only read"]


def test_after_commit_goes_with_a_rollback(app: Flask, litestack: Litestack) -> None:
    done: list[str] = []
    with app.app_context():
        session = litestack.db.session
        session.add(Post(title="New"))
        litestack.db.after_commit(lambda: done.append("never"))
        session.rollback()
        session.add(Post(title="Other"))
        session.commit()
        assert done == []


def test_after_commit_goes_with_its_savepoint_and_waits_for_the_outermost_commit(
    app: Flask, litestack: Litestack
) -> None:
    """SQLAlchemy's own after_commit event fires for a released savepoint."""
    done: list[str] = []
    with app.app_context():
        session = litestack.db.session
        with session.begin_nested():
            session.add(Post(title="Kept"))
            litestack.db.after_commit(lambda: done.append("kept"))
        assert done == []
        nested = session.begin_nested()
        session.add(Post(title="Dropped"))
        litestack.db.after_commit(lambda: done.append("dropped"))
        nested.rollback()
        session.commit()
        assert done == ["kept"]


def test_after_commit_goes_with_a_context_that_never_commits(
    app: Flask, litestack: Litestack
) -> None:
    done: list[str] = []
    with app.app_context():
        litestack.db.session.add(Post(title="Forgotten"))
        litestack.db.after_commit(lambda: done.append("never"))
    with app.app_context():
        litestack.db.session.add(Post(title="Next"))
        litestack.db.session.commit()
    assert done == []


def test_a_commit_that_fails_leaves_nothing_to_who_has_the_connection_next(
    app: Flask, litestack: Litestack
) -> None:
    with app.app_context():
        session = litestack.db.session
        session.execute(text("PRAGMA defer_foreign_keys = ON"))
        session.execute(text("CREATE TABLE note (id INTEGER REFERENCES post DEFERRABLE)"))
        session.execute(text("PRAGMA defer_foreign_keys = ON"))
        session.execute(text("INSERT INTO note VALUES (1000)"))
        with pytest.raises(exc.IntegrityError):
            session.commit()
        # As a request ends whose view does not know of rollback().

    def write() -> int:
        session = litestack.db.session
        assert not raw(session.connection()).in_transaction
        session.add(Comment(post_id=1, text="later"))
        session.commit()
        return session.scalars(select(func.count()).select_from(Comment)).one()

    assert elsewhere(app, write) == [1]
    with app.app_context():
        assert write() == 2


def test_the_commit_is_visible_to_others_when_the_work_runs(
    app: Flask, litestack: Litestack
) -> None:
    seen: list[Any] = []
    with app.app_context(), litestack.db.write() as session:
        session.get_one(Post, 1).views = 4
        litestack.db.after_commit(
            lambda: seen.extend(elsewhere(app, lambda: litestack.db.session.get_one(Post, 1).views))
        )
    assert seen == [4]


def test_work_after_the_commit_may_enqueue_and_delete_from_the_cache(
    app: Flask, litestack: Litestack
) -> None:
    @litestack.task
    def later() -> None: ...

    done: list[str] = []

    def after() -> None:
        litestack.cache.delete("page")
        later.enqueue()
        litestack.db.after_commit(lambda: done.append("nested"))

    with app.app_context():
        litestack.cache.set("page", "old")
        with litestack.db.write() as session:
            session.add(Post(title="New"))
            litestack.db.after_commit(after)
        assert litestack.cache.get("page") is None
        assert litestack.jobs.counts()["queued"] == 1
        assert done == ["nested"]


def test_an_interrupt_in_work_after_the_commit_comes_after_the_rest(
    app: Flask, litestack: Litestack
) -> None:
    done: list[str] = []

    def interrupt() -> None:
        raise KeyboardInterrupt

    with app.app_context():
        litestack.db.session.add(Post(title="New"))
        litestack.db.after_commit(interrupt)
        litestack.db.after_commit(lambda: done.append("still"))
        with pytest.raises(KeyboardInterrupt):
            litestack.db.session.commit()
        assert done == ["still"]


def test_write_inside_a_savepoint_reloads_what_was_loaded_before_it(
    app: Flask, litestack: Litestack
) -> None:
    with app.app_context():
        session = litestack.db.session
        post = session.get_one(Post, 1)
        assert post.views == 0
        elsewhere(app, set_views(litestack, 100))
        with session.begin_nested():
            with litestack.db.write():
                post.views += 1
        session.commit()
        assert post.views == 101


def test_write_keeps_changes_made_under_the_lock(app: Flask, litestack: Litestack) -> None:
    with app.app_context():
        session = litestack.db.session
        with session.begin():
            session.add(Post(id=2, title="Two"))
            session.flush()
            session.get_one(Post, 1).views = 7
            with litestack.db.write():
                session.get_one(Post, 1).views += 1
        assert session.get_one(Post, 1).views == 8


def test_a_thread_that_ended_is_not_taken_for_this_one(app: Flask, litestack: Litestack) -> None:
    """The numbers of threads are used again; a new thread has to wait, not to be refused."""
    with app.app_context():
        engine = litestack.db.engine
    sessions: list[Session] = []

    def begin() -> None:
        session = Session(engine)
        session.add(Post(title="Unfinished"))
        session.flush()
        sessions.append(session)

    thread = threading.Thread(target=begin)
    thread.start()
    thread.join()
    timer = threading.Timer(0.3, lambda: sessions[0].commit())
    timer.start()
    assert elsewhere(app, set_views(litestack, 3)) == [None]
    timer.join()
    sessions[0].close()


def test_foreign_keys_cascade_and_are_enforced(app: Flask, litestack: Litestack) -> None:
    with app.app_context():
        session = litestack.db.session
        session.add(Comment(post_id=99, text="to nothing"))
        with pytest.raises(exc.IntegrityError):
            session.commit()
        session.rollback()
        session.add(Comment(post_id=1, text="hello"))
        session.commit()
        session.execute(text("DELETE FROM post"))
        session.commit()
        assert session.scalar(select(func.count(Comment.id))) == 0


def test_create_all_by_many_at_once(tmp_path: Path) -> None:
    litestack = Litestack(metadata=Post.metadata)
    app = Flask("new")
    app.config["LITESTACK_DATA_PATH"] = tmp_path / "new"
    litestack.init_app(app)
    outcomes: list[Any] = []
    threads = [
        threading.Thread(target=lambda: outcomes.extend(elsewhere(app, litestack.db.create_all)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == [None] * 8


def test_metadata_forgotten_says_so() -> None:
    litestack = Litestack()
    with pytest.raises(ConfigError, match="metadata="):
        litestack.db.metadata  # noqa: B018


def test_a_forked_child_makes_connections_of_its_own(app: Flask, litestack: Litestack) -> None:
    with app.app_context():
        litestack.db.session.get_one(Post, 1)  # leaves a connection in use, and one in the pool
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                with app.app_context():
                    set_views(litestack, 5)()
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0
        litestack.db.session.expire_all()
        assert litestack.db.session.get_one(Post, 1).views == 5
        set_views(litestack, 6)()
        assert litestack.db.session.get_one(Post, 1).views == 6

"""An adopted database that is not SQLite: cache, cable and after_commit() wait for its commits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from flask_sqlalchemy_lite import SQLAlchemy as SQLAlchemyLite
from sqlalchemy import event, select, text, update
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from sqlalchemy.exc import IntegrityError, PendingRollbackError
from sqlalchemy.orm import Session

from flask_litestack import ConfigError, Litestack

from .conftest import Comment, Model, Post
from .test_db import elsewhere


class Foreign(SQLiteDialect_pysqlite):
    """Stands for PostgreSQL: a database of which nothing is known to be SQLite."""

    name = "foreign"
    supports_statement_cache = True

    def connect(self, *args: Any, **options: Any) -> Any:
        connection = super().connect(*args, **options)
        connection.execute("PRAGMA foreign_keys = ON")
        return connection

    def do_begin(self, dbapi_connection: Any) -> None:
        if dbapi_connection.isolation_level is not None:  # AUTOCOMMIT
            dbapi_connection.execute("BEGIN")


registry.register("foreign", __name__, "Foreign")


class Shop:
    """An app on a foreign database, in an app context."""

    def __init__(self, app: Flask, litestack: Litestack, session: Callable[[], Session]) -> None:
        self.app = app
        self.db = litestack.db
        self.cache = litestack.cache
        self.cable = litestack.cable
        self._session = session
        self.done: list[object] = []

    @property
    def session(self) -> Session:
        return self._session()

    def waits(self, name: str) -> None:
        """Have a name noted after the commit."""
        self.db.after_commit(lambda: self.done.append(name))

    def noted(self, name: str) -> Callable[[], None]:
        return lambda: self.done.append(name)

    def titles(self) -> list[str]:
        with self.db.engine.connect() as connection:
            return list(connection.scalars(select(Post.title).order_by(Post.id)))


@pytest.fixture(params=["Flask-SQLAlchemy", "Flask-SQLAlchemy-Lite"])
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shop]:
    app = Flask("shop")
    app.config["LITESTACK_DATA_PATH"] = tmp_path / "data"
    uri = f"foreign:///{tmp_path}/foreign.db"
    if request.param == "Flask-SQLAlchemy":
        app.config["SQLALCHEMY_DATABASE_URI"] = uri
        db: Any = SQLAlchemy(metadata=Model.metadata)
    else:
        app.config["SQLALCHEMY_ENGINES"] = {"default": uri}
        db = SQLAlchemyLite()
    litestack = Litestack(db=db)
    db.init_app(app)
    litestack.init_app(app)

    @litestack.channel("posts")
    def posts() -> bool:
        return True

    with app.app_context():
        Model.metadata.create_all(db.engine)
        with db.engine.begin() as connection:
            connection.execute(text("INSERT INTO post (id, title, views) VALUES (1, 'First', 0)"))
        yield Shop(app, litestack, lambda: litestack.db.session)
        litestack.db.session.close()
        db.engine.dispose()


def change_by_the_orm(session: Session) -> None:
    session.get_one(Post, 1).title = "Second"


def flush_a_change(session: Session) -> None:
    change_by_the_orm(session)
    session.flush()


def change_by_core(session: Session) -> None:
    session.execute(update(Post).values(title="Second"))


def change_by_text(session: Session) -> None:
    session.execute(text("-- a hint\n /* two */ UPDATE post SET title = 'Second'"))


def change_on_the_connection(session: Session) -> None:
    session.connection().exec_driver_sql(
        "WITH a AS (SELECT 'Second' AS b) UPDATE post SET title = (SELECT b FROM a)"
    )


CHANGES = [
    change_by_the_orm,
    flush_a_change,
    change_by_core,
    change_by_text,
    change_on_the_connection,
]


@pytest.mark.parametrize("change", CHANGES)
def test_work_waits_for_the_commit_of_what_was_changed(
    shop: Shop, change: Callable[[Session], None]
) -> None:
    change(shop.session)
    assert shop.db.joins()
    assert shop.db.holds_changes()
    shop.db.after_commit(lambda: shop.done.append(shop.titles()))
    assert shop.done == []
    shop.session.commit()
    assert shop.done == [["Second"]]
    assert not shop.db.joins()
    shop.session.commit()
    assert shop.done == [["Second"]]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("end", ["rollback", "close"])
def test_work_goes_with_a_rollback(shop: Shop, change: Callable[[Session], None], end: str) -> None:
    change(shop.session)
    shop.db.after_commit(
        shop.noted("never"), before=shop.noted("never"), failed=shop.noted("failed")
    )
    getattr(shop.session, end)()
    assert shop.done == ["failed"]
    change(shop.session)
    shop.waits("the next one")
    shop.session.commit()
    assert shop.done == ["failed", "the next one"]


def test_work_goes_with_a_context_that_never_commits(shop: Shop) -> None:
    with shop.app.app_context():
        flush_a_change(shop.session)
        shop.db.after_commit(shop.noted("never"), failed=shop.noted("failed"))
    assert shop.done == ["failed"]
    with shop.app.app_context():
        flush_a_change(shop.session)
        shop.session.commit()
    assert shop.done == ["failed"]


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT 'UPDATE', title FROM post",
        "WITH a AS (SELECT 1 AS update_set) SELECT * FROM a",
        "PRAGMA case_sensitive_like = 1",  # as SET, without which some apps do not even read
    ],
)
def test_work_is_done_at_once_if_the_session_has_only_read(shop: Shop, statement: str) -> None:
    shop.waits("unused")
    shop.session.execute(text(statement))
    assert not shop.db.joins()
    assert not shop.db.holds_changes()
    shop.db.after_commit(shop.noted("work"), before=shop.noted("before"))
    assert shop.done == ["unused", "before", "work"]


def test_a_transaction_has_nothing_of_the_one_before_it_on_its_connection(shop: Shop) -> None:
    flush_a_change(shop.session)
    shop.waits("one")
    shop.session.commit()
    shop.session.get_one(Post, 1)
    assert not shop.db.joins()
    shop.waits("two")
    assert shop.done == ["one", "two"]


def test_what_is_committed_by_itself_is_waited_for_by_nobody(shop: Shop) -> None:
    shop.session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
    change_by_core(shop.session)
    assert not shop.db.joins()
    assert shop.titles() == ["Second"]


def test_work_waits_for_what_waits_already(shop: Shop) -> None:
    post = Post(title="Not after all")
    shop.session.add(post)
    shop.waits("one")
    shop.session.expunge(post)
    assert shop.db.joins()
    shop.waits("two")
    assert shop.done == []
    shop.session.commit()
    assert shop.done == ["one", "two"]


def test_work_goes_with_its_savepoint_and_waits_for_the_outermost_commit(shop: Shop) -> None:
    session = shop.session
    with session.begin_nested():
        change_by_core(session)
        shop.waits("released")
        with session.begin_nested():
            shop.waits("released twice")
        inner = session.begin_nested()
        shop.db.after_commit(shop.noted("dropped"), failed=shop.noted("not failed"))
        inner.rollback()
    assert shop.done == []
    dropped = session.begin_nested()
    with session.begin_nested():
        shop.waits("dropped, too")
    dropped.rollback()
    session.begin_nested()
    shop.waits("left open")
    session.commit()
    assert shop.done == ["released", "released twice", "left open"]


def test_a_released_savepoint_is_dropped_with_its_transaction(shop: Shop) -> None:
    with shop.session.begin_nested():
        change_by_core(shop.session)
        shop.db.after_commit(shop.noted("never"), failed=shop.noted("failed"))
    shop.session.rollback()
    assert shop.done == ["failed"]


def test_an_explicit_transaction_is_waited_for(shop: Shop) -> None:
    with shop.session.begin():
        shop.waits("work")
        assert shop.done == []
        shop.session.begin_nested()  # and left to the end of the block
        shop.db.after_commit(shop.noted("nested"), before=shop.noted("before"))
    assert shop.done == ["before", "work", "nested"]


def test_what_comes_before_the_commit_comes_after_the_last_flush(shop: Shop) -> None:
    shop.session.add(Post(id=2, title="New"))
    flushed = []
    shop.db.after_commit(
        lambda: flushed.append((bool(shop.session.new), shop.titles())),
        before=lambda: flushed.append((bool(shop.session.new), shop.titles())),
    )
    shop.session.commit()
    assert flushed == [(False, ["First"]), (False, ["First", "New"])]


def test_work_of_the_last_flush_is_prepared_like_any_other(shop: Shop) -> None:
    def wait(*_: object) -> None:
        shop.db.after_commit(shop.noted("work"), before=lambda: shop.done.append(shop.titles()))

    event.listen(Post, "after_insert", wait)
    try:
        shop.session.add(Post(id=2, title="New"))
        shop.session.commit()
    finally:
        event.remove(Post, "after_insert", wait)
    assert shop.done == [["First"], "work"]


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
@pytest.mark.parametrize("end", ["rollback", "close"])
def test_an_error_before_the_commit_keeps_it_from_being_committed(
    shop: Shop, error: type[BaseException], end: str
) -> None:
    def fail() -> None:
        raise error

    shop.session.add(Post(id=2, title="Never"))
    shop.db.after_commit(shop.noted("never"), before=fail, failed=shop.noted("failed"))
    with pytest.raises(error):
        shop.session.commit()
    getattr(shop.session, end)()
    assert shop.done == ["failed"]
    with shop.db.engine.connect() as connection:
        connection.scalar(select(Post.id))
        connection.commit()  # of whoever has the connection next
    assert shop.titles() == ["First"]
    shop.session.add(Post(id=2, title="Other"))
    shop.waits("work")
    shop.session.commit()
    assert shop.done == ["failed", "work"]
    assert shop.titles() == ["First", "Other"]


def test_a_commit_that_fails_does_no_work(shop: Shop) -> None:
    session = shop.session
    session.execute(text("PRAGMA defer_foreign_keys = ON"))
    session.add(Comment(post_id=99, text="on nothing"))
    shop.db.after_commit(
        shop.noted("never"), before=shop.noted("before"), failed=shop.noted("failed")
    )
    with pytest.raises(IntegrityError):
        session.commit()
    session.rollback()
    assert shop.done == ["before", "failed"]
    assert not shop.db.joins()


def test_after_a_failed_flush_one_is_told_to_roll_back(shop: Shop) -> None:
    shop.session.add(Post(id=2, title="New"))
    shop.db.after_commit(shop.noted("never"), failed=shop.noted("failed"))
    shop.session.add(Post(id=1, title="there is one"))
    with pytest.raises(IntegrityError):
        shop.session.flush()
    assert not shop.db.is_over()
    assert not shop.db.holds_changes()
    with pytest.raises(PendingRollbackError):
        shop.waits("never")
    shop.session.rollback()
    assert shop.done == ["failed"]


def test_the_rest_of_the_work_is_done_after_an_error(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    flush_a_change(shop.session)
    shop.db.after_commit(lambda: 1 / 0)
    shop.waits("still")
    shop.db.after_commit(interrupt)
    shop.waits("even so")
    with pytest.raises(KeyboardInterrupt):
        shop.session.commit()
    assert shop.done == ["still", "even so"]
    assert "ZeroDivisionError" in caplog.text
    assert shop.session.get_one(Post, 1).title == "Second"


def test_work_that_asks_to_wait_for_the_commit_is_done_at_once(shop: Shop) -> None:
    def work() -> None:
        assert shop.db.is_over()
        assert not shop.db.joins()
        shop.waits("nested")
        shop.cache.delete("page")

    shop.cache.set("page", "old")
    flush_a_change(shop.session)
    shop.db.after_commit(work)
    shop.session.commit()
    assert shop.done == ["nested"]
    assert shop.cache.get("page") is None


@pytest.mark.parametrize("name", ["after_commit", "after_rollback"])
def test_in_sqlalchemys_event_of_an_end_the_transaction_is_over(shop: Shop, name: str) -> None:
    def note(session: Session) -> None:
        shop.done.append((shop.db.is_over(), shop.db.joins(), shop.db.holds_changes()))
        shop.waits("at once")

    event.listen(shop.session, name, note, once=True)
    flush_a_change(shop.session)
    shop.session.commit() if name == "after_commit" else shop.session.rollback()
    assert shop.done == [(True, False, False), "at once"]


def test_a_session_keeps_nothing_of_its_transactions(shop: Shop) -> None:
    """A shell's session, say, lives as long as the process."""
    engine = shop.db.engine
    listeners = [
        lambda: len(list(engine.dispatch.commit)),
        lambda: len(list(shop.session.dispatch.after_transaction_end)),
    ]
    before = [count() for count in listeners]
    for number in range(10):
        shop.session.add(Post(title=f"{number}"))
        with shop.session.begin_nested():
            shop.waits(f"{number}")
        shop.session.rollback() if number % 2 else shop.session.commit()
    assert shop.done == ["0", "2", "4", "6", "8"]
    assert [count() for count in listeners] == before
    assert shop.session.info == {"litestack_levels": {}}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("forget", ["delete", "clear"])
def test_a_delete_from_the_cache_waits_for_the_commit(
    shop: Shop, change: Callable[[Session], None], forget: str
) -> None:
    cache = shop.cache

    def act() -> None:
        cache.delete("key") if forget == "delete" else cache.clear()

    def seen() -> object:
        return elsewhere(shop.app, lambda: cache.get("key"))

    cache.set("key", "old")
    change(shop.session)
    act()
    assert (cache.get("key"), seen()) == (None, ["old"])
    shop.session.rollback()
    assert (cache.get("key"), seen()) == ("old", ["old"])
    change(shop.session)
    act()
    shop.session.commit()
    assert (cache.get("key"), seen()) == (None, [None])
    assert cache.set("key", "new")


def test_whoever_sees_the_commit_does_not_see_the_value(shop: Shop) -> None:
    seen: list[object] = []
    shop.cache.set("key", "old")
    flush_a_change(shop.session)
    shop.db.after_commit(lambda: seen.extend(elsewhere(shop.app, lambda: shop.cache.get("key"))))
    shop.cache.delete("key")
    shop.session.commit()
    assert seen == [None]


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_broadcast_waits_for_the_commit(shop: Shop, end: str) -> None:
    change_by_core(shop.session)
    before = shop.cable.last_id()
    shop.cable.broadcast("posts", {"title": "Second"})
    assert shop.cable.last_id() == before
    getattr(shop.session, end)()
    assert shop.cable.last_id() == before + (end == "commit")


def test_what_needs_sqlite_says_so(shop: Shop) -> None:
    for block in (shop.db.write, shop.db.read):
        with pytest.raises(ConfigError, match=r"is not SQLite, which jobs, db\.write\(\)"):
            with block():
                pytest.fail("entered")


def test_what_was_changed_on_a_second_bind_counts(tmp_path: Path) -> None:
    app = Flask("shop")
    app.config["LITESTACK_DATA_PATH"] = tmp_path
    app.config["SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{tmp_path}/data.sqlite3"
    app.config["SQLALCHEMY_BINDS"] = {"other": f"foreign:///{tmp_path}/foreign.db"}
    db = SQLAlchemy()
    litestack = Litestack(db=db)
    db.init_app(app)
    litestack.init_app(app)
    done: list[str] = []
    with app.app_context():
        other = {"bind": db.engines["other"]}
        db.session.execute(text("SELECT 1"), bind_arguments=other)
        assert not litestack.db.joins()
        db.session.execute(text("CREATE TABLE t (a)"), bind_arguments=other)
        assert litestack.db.joins()
        litestack.db.after_commit(lambda: done.append("never"))
        db.session.rollback()
        db.session.execute(text("CREATE TABLE t (a)"), bind_arguments=other)
        litestack.db.after_commit(lambda: done.append("work"))
        assert done == []
        db.session.commit()
        assert done == ["work"]
        db.session.remove()
        for engine in db.engines.values():
            engine.dispose()

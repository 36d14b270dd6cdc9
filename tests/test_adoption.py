"""An app that has Flask-SQLAlchemy, or its Lite sibling, keeps it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from flask_sqlalchemy_lite import SQLAlchemy as SQLAlchemyLite
from sqlalchemy import create_engine, func, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from flask_litestack import ConfigError, Litestack, TransactionError
from flask_litestack.sqlite.tuning import raw
from flask_litestack.testing import JobTester

from .conftest import Model, Post


class Base(DeclarativeBase):
    pass


@pytest.fixture
def adopted(tmp_path: Path) -> Iterator[tuple[Flask, Litestack, SQLAlchemy, Any]]:
    db = SQLAlchemy(model_class=Base)

    class Item(db.Model):
        id: Mapped[int] = mapped_column(primary_key=True)
        n: Mapped[int] = mapped_column(default=0)

    litestack = Litestack(db=db)
    app = Flask("shop")
    app.config["LITESTACK_DATA_PATH"] = tmp_path
    app.config["SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{tmp_path}/app.db"
    db.init_app(app)
    litestack.init_app(app)
    with app.app_context():
        db.create_all()
    yield app, litestack, db, Item
    with app.app_context():
        db.engine.dispose()
    Base.metadata.clear()
    Base.registry.dispose()


def test_its_session_and_engine_are_ours(
    adopted: tuple[Flask, Litestack, SQLAlchemy, Any],
) -> None:
    app, litestack, db, item = adopted
    with app.app_context():
        assert litestack.db.session is db.session()
        assert litestack.db.engine is db.engine
        assert litestack.db.metadata is db.metadata
        db.session.add(item())
        db.session.commit()
        assert raw(db.session.connection()).execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_write_and_after_commit_work_on_its_session(
    adopted: tuple[Flask, Litestack, SQLAlchemy, Any],
) -> None:
    app, litestack, db, item = adopted
    done: list[str] = []
    with app.app_context():
        with litestack.db.write() as session:
            session.add(item(id=1))
            litestack.db.after_commit(lambda: done.append("after"))
            assert done == []
        assert done == ["after"]
        db.session.get(item, 1)

    def add() -> None:
        for _ in range(25):
            with app.app_context():
                db.session.get(item, 1)
                with litestack.db.write():
                    db.session.get(item, 1).n += 1

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with app.app_context():
        assert db.session.scalar(select(func.sum(item.n))) == 100


def test_the_wrong_order_of_init_app_is_named(tmp_path: Path) -> None:
    db = SQLAlchemy(model_class=Base)
    app = Flask("shop")
    app.config["SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{tmp_path}/app.db"
    with pytest.raises(ConfigError, match=r"db\.init_app\(app\) before litestack"):
        Litestack(db=db).init_app(app)


def test_flask_sqlalchemy_lite_is_adopted_too(tmp_path: Path) -> None:
    db = SQLAlchemyLite()
    litestack = Litestack(db=db)
    app = Flask("shop")
    app.config["LITESTACK_DATA_PATH"] = tmp_path
    app.config["SQLALCHEMY_ENGINES"] = {"default": f"sqlite:///{tmp_path}/lite.db"}
    with pytest.raises(ConfigError, match=r"db\.init_app\(app\) before litestack"):
        litestack.init_app(app)
    db.init_app(app)
    litestack.init_app(app)
    with app.app_context():
        Model.metadata.create_all(db.engine)
        assert litestack.db.session is db.session
        with litestack.db.write() as session:
            session.add(Post(title="Lite"))
        assert db.session.scalars(select(Post.title)).all() == ["Lite"]
        db.engine.dispose()


@pytest.fixture
def two_files(tmp_path: Path) -> Iterator[tuple[Flask, Litestack, SQLAlchemy, Any]]:
    """An app with a second bind: the model is of that one."""
    db = SQLAlchemy(model_class=Base)

    class Note(db.Model):
        __bind_key__ = "notes"
        id: Mapped[int] = mapped_column(primary_key=True)

    litestack = Litestack(db=db)
    app = Flask("shop")
    app.config["LITESTACK_DATA_PATH"] = tmp_path
    app.config["SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{tmp_path}/data.sqlite3"
    app.config["SQLALCHEMY_BINDS"] = {"notes": f"sqlite:///{tmp_path}/notes.sqlite3"}
    db.init_app(app)
    litestack.init_app(app)
    with app.app_context():
        db.create_all()
    yield app, litestack, db, Note
    with app.app_context():
        for engine in db.engines.values():
            engine.dispose()
    Base.metadata.clear()
    Base.registry.dispose()


def test_write_refuses_what_another_bind_has_not_committed(
    two_files: tuple[Flask, Litestack, SQLAlchemy, Any],
) -> None:
    app, litestack, db, note = two_files
    with app.app_context():
        db.session.add(note())
        db.session.flush()
        with pytest.raises(TransactionError, match=r"a write to .*notes.* not committed"):
            with litestack.db.write():
                pytest.fail("entered")
        db.session.commit()
        with litestack.db.write() as session:
            session.add(note())
        assert db.session.scalar(select(func.count()).select_from(note)) == 2


def test_what_another_bind_has_not_committed_is_joined(
    two_files: tuple[Flask, Litestack, SQLAlchemy, Any],
) -> None:
    app, litestack, db, note = two_files
    done: list[str] = []
    with app.app_context():
        db.session.scalars(select(note)).all()
        assert not litestack.db.joins()
        db.session.add(note())
        db.session.flush()
        litestack.db.after_commit(lambda: done.append("rolled back"))
        db.session.rollback()
        db.session.add(note())
        db.session.flush()
        litestack.db.after_commit(lambda: done.append("committed"))
        assert done == []
        db.session.commit()
        assert done == ["committed"]


def test_what_a_job_wrote_to_another_bind_is_committed(
    two_files: tuple[Flask, Litestack, SQLAlchemy, Any],
) -> None:
    app, litestack, db, note = two_files

    @litestack.task
    def write() -> None:
        db.session.add(note())
        db.session.flush()

    with app.app_context():
        write.enqueue()
    (job,) = JobTester(app).run()
    assert job.state == "succeeded"
    with app.app_context():
        assert db.session.scalar(select(func.count()).select_from(note)) == 1


def test_what_a_session_wrote_to_a_database_that_is_not_tuned_is_not_lost(
    adopted: tuple[Flask, Litestack, SQLAlchemy, Any], tmp_path: Path
) -> None:
    """PostgreSQL as a second bind, say: whether a transaction there has written is not known."""
    app, litestack, db, _item = adopted
    foreign = create_engine(f"sqlite:///{tmp_path}/foreign.db")
    with foreign.begin() as connection:
        connection.execute(text("CREATE TABLE t (a)"))

    def insert() -> None:
        statement = text("INSERT INTO t VALUES (1)")
        db.session.execute(statement, bind_arguments={"bind": foreign})

    write = litestack.task(insert)
    with app.app_context():
        insert()
        assert not litestack.db.joins()
        with pytest.raises(TransactionError, match=r"a transaction on .*foreign\.db"):
            with litestack.db.write():
                pytest.fail("entered")
        db.session.commit()
        write.enqueue()
    assert [job.state for job in JobTester(app).run()] == ["succeeded"]
    with foreign.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM t")) == 2
    foreign.dispose()

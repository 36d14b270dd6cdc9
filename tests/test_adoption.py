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
from sqlalchemy import func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from flask_litestack import ConfigError, Litestack
from flask_litestack.sqlite.tuning import raw

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

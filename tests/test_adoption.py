"""An app that has Flask-SQLAlchemy, or its Lite sibling, keeps it."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing
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
from .servers import environment


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


def make_shop(data_path: Path, uri: str) -> tuple[Flask, Litestack, SQLAlchemy]:
    db = SQLAlchemy(model_class=Base)
    litestack = Litestack(db=db)
    app = Flask("shop")
    app.config["LITESTACK_DATA_PATH"] = data_path
    app.config["SQLALCHEMY_DATABASE_URI"] = uri
    db.init_app(app)
    litestack.init_app(app)
    return app, litestack, db


def query_as_nobody(data_path: Path, database: Path) -> str:
    """Query an adopted database as the unprivileged uid 65534; return the error's text."""
    program = (
        "import os, sys, pathlib\n"
        "from sqlalchemy import text\n"
        "from flask_litestack.errors import DataPathError\n"
        "from tests.test_adoption import make_shop\n"
        "app, litestack, db = make_shop(pathlib.Path(sys.argv[1]), f'sqlite:///{sys.argv[2]}')\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "with app.app_context():\n"
        "    try:\n"
        "        print(db.session.execute(text('SELECT 1')).scalar())\n"
        "    except DataPathError as error:\n"
        "        print(error)\n"
    )
    command = [sys.executable, "-c", program, str(data_path), str(database)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("query", ["uri=true", "mode=rwc&uri=true"])
def test_the_file_of_a_uri_is_found(tmp_path: Path, query: str) -> None:
    path = tmp_path / "my shop.db"
    app, litestack, db = make_shop(tmp_path, f"sqlite:///file:{tmp_path}/my%20shop.db?{query}")
    with app.app_context():
        assert litestack.db.path == path
        db.session.execute(text("CREATE TABLE t (a)"))
        db.session.commit()
        with closing(litestack.db.connect()) as connection:
            assert connection.execute("SELECT count(*) FROM t").fetchone() == (0,)
        db.session.remove()
        db.engine.dispose()


@pytest.mark.parametrize("name", ["data/shop.db", "data/deeper/shop.db"])
def test_the_data_folder_is_made_for_an_adopted_database(tmp_path: Path, name: str) -> None:
    data = tmp_path / "data"
    app, _, db = make_shop(data, f"sqlite:///{tmp_path / name}")
    with app.app_context():
        assert not data.exists()
        assert db.session.execute(text("SELECT 1")).scalar() == 1
        db.session.remove()
        db.engine.dispose()
    folders = {data, (tmp_path / name).parent}
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in folders} == {0o700}


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user, so needs root")
def test_a_data_folder_that_cannot_hold_an_adopted_database_is_explained() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        data = folder / "data"
        message = query_as_nobody(data, data / "shop.db")
        assert f"{data} cannot be created by user" in message
        assert f"{folder} (owner root, uid 0, mode 0755)" in message

        data.mkdir()
        os.chown(data, 65534, 65534)
        (data / "shop.db").touch()
        message = query_as_nobody(data, data / "shop.db")
        assert f"cannot write {data}/shop.db (owner root, uid 0, mode 0644)" in message


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

"""tune(): any SQLAlchemy engine on a SQLite file gets our transactions."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, event, exc, select, text
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from flask_litestack import ConfigError, DataPathError, tune
from flask_litestack.errors import LockError, SelfDeadlock
from flask_litestack.sqlite import connect, driver
from flask_litestack.sqlite.connection import Connection
from flask_litestack.sqlite.tuning import raw

from ..conftest import Model, Post


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/app.db"


def test_a_tuned_engine_uses_the_one_driver(url: str) -> None:
    engine = create_engine(url)
    tune(engine)
    assert engine.dialect.dbapi is driver.module
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT sqlite_version()")) == driver.version
    engine.dispose()


def test_a_second_tune_changes_nothing(url: str) -> None:
    engine = create_engine(url)
    tune(engine)
    pool = engine.pool
    tune(engine)
    assert engine.pool is pool
    engine.dispose()


def test_connections_made_before_are_replaced(url: str) -> None:
    engine = create_engine(url)
    with engine.connect() as connection:
        connection.execute(text("CREATE TABLE t (a)"))
        connection.commit()
    tune(engine)
    with engine.connect() as connection:
        assert raw(connection).execute("PRAGMA journal_mode").fetchone() == ("wal",)
    engine.dispose()


def test_an_untuned_engine_is_named(url: str) -> None:
    engine = create_engine(url)
    with engine.connect() as connection, pytest.raises(ConfigError, match="tune"):
        raw(connection)
    engine.dispose()


def test_other_engines_are_refused_without_showing_a_password() -> None:
    engine = create_engine("postgresql+psycopg://user:secret@host/name")
    with pytest.raises(ConfigError, match="cannot be tuned") as caught:
        tune(engine)
    assert "secret" not in str(caught.value)


def test_a_creator_of_ones_own_must_make_our_connections(url: str, tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    wrong = create_engine(url, creator=lambda: driver.module.connect(path))
    tune(wrong)
    with pytest.raises(ConfigError, match="creator="):
        wrong.connect()
    right = create_engine(url, creator=lambda: connect(path))
    tune(right)
    with right.connect() as connection:
        connection.execute(text("CREATE TABLE t (a)"))
    right.dispose()


def test_an_engine_in_memory_says_what_it_is_good_for(caplog: pytest.LogCaptureFixture) -> None:
    engine = create_engine("sqlite://")
    with caplog.at_level(logging.WARNING):
        tune(engine)
    assert "good for tests" in caplog.text
    Model.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(Post(title="In memory"))
        session.flush()
        with session.begin_nested():
            session.add(Post(title="Too"))
        session.commit()
        assert session.scalars(select(Post.title)).all() == ["In memory", "Too"]
    engine.dispose()


def test_an_autocommit_engine_commits_each_statement(url: str) -> None:
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    tune(engine)
    with engine.connect() as connection:
        connection.execute(text("CREATE TABLE t (a)"))
        assert not raw(connection).in_transaction
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM t")).scalar() == 0
    engine.dispose()


def test_the_usual_recipe_of_events_still_works(url: str) -> None:
    """SQLAlchemy's documentation tells people to take BEGIN into their own hands."""
    engine = create_engine(url)

    @event.listens_for(engine, "connect")
    def do_connect(connection: object, record: object) -> None:
        connection.isolation_level = None  # type: ignore[attr-defined]

    @event.listens_for(engine, "begin")
    def do_begin(connection: object) -> None:
        connection.exec_driver_sql("BEGIN")  # type: ignore[attr-defined]

    tune(engine)
    Model.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(Post(title="One"))
        with session.begin_nested():
            session.add(Post(title="Two"))
        session.commit()
        assert len(session.scalars(select(Post)).all()) == 2
        session.add(Post(title="Three"))
        session.flush()
        session.rollback()
        assert len(session.scalars(select(Post)).all()) == 2
    engine.dispose()


def test_a_file_called_run_beside_the_database_is_named(url: str, tmp_path: Path) -> None:
    """A script of that name in the project's folder, say."""
    (tmp_path / "run").write_text("#!/bin/sh")
    engine = create_engine(url)
    tune(engine)
    with pytest.raises(DataPathError, match=f"{tmp_path}/run is a file, .* app.db"):
        engine.connect()
    engine.dispose()


CONNECT_AS_NOBODY = """
import os, sys
from sqlalchemy import create_engine
from flask_litestack import DataPathError, tune
engine = create_engine(f"sqlite:///{sys.argv[1]}")
tune(engine)
os.setgid(65534); os.setuid(65534)
try:
    engine.connect()
except DataPathError as error:
    print(error)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user, so needs root")
@pytest.mark.parametrize("left", ["run", "run/app.db.writer"])
def test_what_root_left_in_run_is_named(left: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "run").mkdir()
        (folder / "run/app.db.writer").touch(mode=0o600)
        (folder / "app.db").touch()
        for path in [folder, *folder.rglob("*")]:
            os.chown(path, 65534, 65534)
        os.chown(folder / left, 0, 0)
        command = [sys.executable, "-c", CONNECT_AS_NOBODY, f"{folder}/app.db"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert f"cannot write {folder}/{left} (owner root, uid 0, mode 0" in done.stdout, done
        assert "chown -R" in done.stdout


def foreign_keys(engine: Engine) -> int:
    with engine.connect() as connection:
        return int(connection.execute(text("PRAGMA foreign_keys")).scalar_one())


@pytest.mark.parametrize("statement", ["PRAGMA foreign_keys = OFF", "ATTACH ':memory:' AS other"])
def test_a_connection_whose_settings_were_changed_is_not_lent_again(
    url: str, statement: str
) -> None:
    engine = create_engine(url)
    tune(engine)
    with engine.connect() as connection:
        first = raw(connection)
        connection.execute(text(statement))
        if "foreign_keys" in statement:
            assert connection.execute(text("PRAGMA foreign_keys")).scalar() == 0
    assert foreign_keys(engine) == 1
    with engine.connect() as connection:
        assert raw(connection) is not first
        assert len(connection.execute(text("PRAGMA database_list")).all()) == 1
    engine.dispose()


def test_settings_made_when_it_connects_stay_and_so_does_the_connection(url: str) -> None:
    engine = create_engine(url)
    tune(engine)

    @event.listens_for(engine, "connect")
    def connect(connection: Connection, record: object) -> None:
        connection.execute("PRAGMA foreign_keys = OFF")

    used = set()
    for _ in range(3):
        with engine.connect() as connection:
            Model.metadata.create_all(connection)  # it asks by PRAGMA what there is
            connection.commit()
            used.add(raw(connection))
        assert foreign_keys(engine) == 0
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        used.add(raw(connection))
    with engine.connect() as connection:
        used.add(raw(connection))
    assert len(used) == 1
    engine.dispose()


def test_a_changed_setting_does_not_cost_a_database_in_memory() -> None:
    engine = create_engine("sqlite://")
    tune(engine)
    Model.metadata.create_all(engine)
    with engine.connect() as connection:
        connection.execute(text("PRAGMA foreign_keys = OFF"))
    with Session(engine) as session:
        assert session.scalars(select(Post)).all() == []
    engine.dispose()


def test_errors_are_sqlalchemys_operational_errors(url: str) -> None:
    engine: Engine = create_engine(url, poolclass=NullPool)
    tune(engine, busy_timeout=0.1)
    Model.metadata.create_all(engine)
    with Session(engine) as one, Session(engine) as two:
        one.add(Post(title="One"))
        one.flush()
        two.add(Post(title="Two"))
        with pytest.raises(exc.OperationalError) as caught:
            two.flush()
        assert isinstance(caught.value.orig, SelfDeadlock)
        assert isinstance(caught.value.orig, LockError)
    engine.dispose()

"""init_app: what it registers, what it refuses, what it does not create."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from flask import Flask
from sqlalchemy import select

from flask_litestack import ConfigError, DataPathError, Litestack, StoreError

from .conftest import Model, Post


def make_app(path: Path, name: str = "shop") -> Flask:
    app = Flask(name)
    app.config["LITESTACK_DATA_PATH"] = path
    return app


def test_init_app_registers_the_object_and_creates_nothing(tmp_path: Path) -> None:
    app = make_app(tmp_path / "data")
    litestack = Litestack(metadata=Model.metadata)
    threads = threading.active_count()
    litestack.init_app(app)
    assert app.extensions["litestack"] is litestack
    assert not (tmp_path / "data").exists()
    assert threading.active_count() == threads


def test_the_folder_is_made_on_first_use_for_its_owner_alone(tmp_path: Path) -> None:
    app = make_app(tmp_path / "deep" / "data")
    litestack = Litestack(metadata=Model.metadata)
    litestack.init_app(app)
    with app.app_context():
        litestack.db.create_all()
        litestack.db.engine.dispose()
    assert stat.S_IMODE((tmp_path / "deep" / "data").stat().st_mode) == 0o700
    assert (tmp_path / "deep" / "data" / "data.sqlite3").exists()


def test_several_apps_have_several_databases(tmp_path: Path) -> None:
    litestack = Litestack(metadata=Model.metadata)
    apps = [make_app(tmp_path / name, name) for name in ("one", "two")]
    for app in apps:
        litestack.init_app(app)
        with app.app_context():
            litestack.db.create_all()
            with litestack.db.write() as session:
                session.add(Post(title=app.name))
    for app in apps:
        with app.app_context():
            assert litestack.db.session.scalars(select(Post.title)).all() == [app.name]
            litestack.db.engine.dispose()


def test_init_app_forgotten(tmp_path: Path) -> None:
    litestack = Litestack(metadata=Model.metadata)
    with make_app(tmp_path).app_context():
        with pytest.raises(ConfigError, match=r"init_app\(app\) was not called for the app 'shop'"):
            litestack.db.session  # noqa: B018


def test_init_app_twice(tmp_path: Path) -> None:
    app = make_app(tmp_path)
    litestack = Litestack(metadata=Model.metadata)
    litestack.init_app(app)
    with pytest.raises(ConfigError, match="called twice on 'shop': this"):
        litestack.init_app(app)
    with pytest.raises(ConfigError, match="called twice on 'shop': another"):
        Litestack(metadata=Model.metadata).init_app(app)


def test_metadata_and_db_together_are_one_too_many() -> None:
    with pytest.raises(ConfigError, match="either"):
        Litestack(metadata=Model.metadata, db=object())


def test_a_base_class_in_place_of_its_metadata_is_named() -> None:
    with pytest.raises(ConfigError, match=r"Model\.metadata"):
        Litestack(metadata=Model)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="Flask-SQLAlchemy"):
        Litestack(db=object())


def test_the_environment_gives_the_path_when_the_app_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LITESTACK_DATA_PATH", str(tmp_path / "env"))
    app = Flask("shop")
    litestack = Litestack()
    litestack.init_app(app)
    with app.app_context():
        assert litestack.settings.data_path == tmp_path / "env"


def test_without_a_path_everything_lives_in_the_instance_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LITESTACK_DATA_PATH", raising=False)
    app = Flask("shop", instance_path=str(tmp_path / "instance"))
    litestack = Litestack()
    litestack.init_app(app)
    with app.app_context():
        assert litestack.settings.data_path == tmp_path / "instance"


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "data.sqlite3").write_text("hello, I am a text file, and long enough for this" * 30)
    app = make_app(tmp_path)
    litestack = Litestack(metadata=Model.metadata)
    litestack.init_app(app)
    with app.app_context(), pytest.raises(StoreError, match=r"data\.sqlite3 is not a SQLite"):
        litestack.db.create_all()


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to become somebody else")
def test_a_folder_that_cannot_be_written_names_user_and_owner(tmp_path: Path) -> None:
    code = f"""
import os, pwd
from flask import Flask
from flask_litestack import Litestack
os.setuid(65534)
app = Flask("shop", root_path="/")
app.config["LITESTACK_DATA_PATH"] = {str(tmp_path / "data")!r}
litestack = Litestack()
litestack.init_app(app)
with app.app_context():
    litestack.db.engine
"""
    (tmp_path / "data").mkdir(mode=0o755)
    for folder in tmp_path.parents:
        if str(folder).startswith("/tmp/"):
            folder.chmod(0o755)
    tmp_path.chmod(0o755)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert DataPathError.__name__ in done.stderr
    assert "nobody" in done.stderr
    assert "root" in done.stderr


def test_importing_the_package_creates_no_thread_and_reads_no_file(tmp_path: Path) -> None:
    code = "import threading, flask_litestack; print(threading.active_count())"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.stdout.strip() == "1"
    assert list(tmp_path.iterdir()) == []

"""backup, verify and restore, as an operator uses them."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.servers import environment

from .commands import SHOP, as_json, litestack

ADD = """
import sys
from shop import Item, create_app, litestack
app = create_app()
with app.app_context():
    litestack.db.create_all()
    with litestack.db.write() as session:
        session.add(Item(name=sys.argv[1]))
"""

READ = """
from sqlalchemy import select
from shop import Item, create_app, litestack
app = create_app()
with app.app_context():
    print(*litestack.db.session.scalars(select(Item.name)))
"""

HOLD = """
import sys
from shop import create_app, litestack
with create_app().app_context():
    with litestack.db.read():
        print("reading", flush=True)
        sys.stdin.read()
"""


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(SHOP)
    run(tmp_path, ADD, "first")
    return tmp_path


def run(folder: Path, code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env=environment(PYTHONPATH=str(folder)),
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_a_backup_is_made_verified_and_restored(shop: Path) -> None:
    (shop / "data" / "secret_key").write_text("key")
    made = litestack(shop, "backup")
    assert made.returncode == 0, made.stderr
    assert "keep this backup as safe as the server" in made.stdout
    (backup,) = (path for path in (shop / "data" / "backups").iterdir() if path.is_dir())
    run(shop, ADD, "second")
    assert run(shop, READ) == "first second\n"

    assert as_json(litestack(shop, "verify", str(backup), "--json"))["files"][0]["rows"] == 1
    restored = litestack(shop, "restore", str(backup), stdin="y\n")
    assert restored.returncode == 0, restored.stderr
    assert "before-restore" in restored.stdout
    assert run(shop, READ) == "first\n"


def test_a_restore_that_is_not_confirmed_changes_nothing(shop: Path) -> None:
    path = as_json(litestack(shop, "backup", "--json"))["path"]
    run(shop, ADD, "second")
    assert litestack(shop, "restore", path, stdin="n\n").returncode == 1
    assert run(shop, READ) == "first second\n"


def test_a_restore_empties_the_cache(shop: Path) -> None:
    path = as_json(litestack(shop, "backup", "--json"))["path"]
    (shop / "data" / "cache.sqlite3").write_text("of another time")
    assert litestack(shop, "restore", path, "--yes").returncode == 0
    assert not (shop / "data" / "cache.sqlite3").exists()


def test_a_restore_names_the_process_that_uses_the_files(shop: Path) -> None:
    path = as_json(litestack(shop, "backup", "--json"))["path"]
    with subprocess.Popen(
        [sys.executable, "-c", HOLD],
        cwd=shop,
        env=environment(PYTHONPATH=str(shop)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "reading\n"
        refused = litestack(shop, "restore", path, "--yes")
        reader.communicate("")
    assert refused.returncode == 1
    assert f"in use by {reader.pid}" in refused.stderr
    assert run(shop, READ) == "first\n"


def test_backups_go_where_they_are_told_and_only_the_newest_stay(shop: Path) -> None:
    for _ in range(3):
        done = litestack(shop, "backup", "elsewhere", "--keep", "2", "--compress")
        assert done.returncode == 0, done.stderr
    archives = sorted((shop / "elsewhere").glob("*.tar.gz"))
    assert len(archives) == 2
    with tarfile.open(archives[0]) as archive:
        assert any(name.endswith("/data.sqlite3") for name in archive.getnames())


ENQUEUE = """
from shop import create_app, litestack

@litestack.task(queue="mail")
def send() -> None: ...

with create_app().app_context():
    send.enqueue()
"""


def test_a_restore_can_hold_the_jobs_that_may_have_run_since(shop: Path) -> None:
    run(shop, ENQUEUE)
    path = as_json(litestack(shop, "backup", "--json"))["path"]
    restored = as_json(litestack(shop, "restore", path, "--yes", "--hold-jobs", "--json"))
    assert restored["held_queues"] == ["mail"]
    (queue,) = as_json(litestack(shop, "status", "--json"))["jobs"]["queues"]
    assert queue["paused"]


CRONS = """
from shop import Item, create_app, litestack

@litestack.task(queue="nightly", cron="* * * * *")
def bill() -> None: ...
"""


def test_a_restore_can_hold_the_cron_tasks_that_may_have_run_since(shop: Path) -> None:
    (shop / "crons.py").write_text(CRONS)
    path = as_json(litestack(shop, "backup", "--json"))["path"]
    arguments = ("restore", path, "--yes", "--hold-jobs", "--json")
    restored = as_json(litestack(shop, *arguments, FLASK_APP="crons"))
    assert restored["held_queues"] == ["nightly"]
    assert run(shop, READ) == "first\n"


ADOPTS = """
import os
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import Mapped, mapped_column
from flask_litestack import Litestack

db = SQLAlchemy()
litestack = Litestack(db=db)

class Item(db.Model):
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]

def create_app():
    app = Flask(__name__, instance_path=os.path.abspath("data"))
    app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite:///shop.db"
    db.init_app(app)
    litestack.init_app(app)
    with app.app_context():
        db.create_all()
    return app
"""


def test_an_adopted_database_is_backed_up_and_restored_whatever_it_is_called(
    tmp_path: Path,
) -> None:
    (tmp_path / "shop.py").write_text(ADOPTS)
    run(tmp_path, ADD, "first")
    made = as_json(litestack(tmp_path, "backup", "--json"))
    assert made["files"] == ["shop.db"]
    assert as_json(litestack(tmp_path, "verify", made["path"], "--json"))["files"][0]["rows"] == 1
    [file] = as_json(litestack(tmp_path, "status", "--json"))["files"]
    assert file["name"] == "shop.db"
    run(tmp_path, ADD, "second")
    with subprocess.Popen(
        [sys.executable, "-c", HOLD],
        cwd=tmp_path,
        env=environment(PYTHONPATH=str(tmp_path)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "reading\n"
        refused = litestack(tmp_path, "restore", made["path"], "--yes")
        reader.communicate("")
    assert f"in use by {reader.pid}" in refused.stderr
    done = litestack(tmp_path, "restore", made["path"], "--yes")
    assert done.returncode == 0, done.stderr
    assert run(tmp_path, READ) == "first\n"


def test_after_an_interrupted_restore_only_a_restore_loads_an_app_that_uses_its_files(
    tmp_path: Path,
) -> None:
    (tmp_path / "shop.py").write_text(
        SHOP.replace(
            "    return app",
            "    with app.app_context(): litestack.db.create_all()\n    return app",
        )
    )
    run(tmp_path, ADD, "first")
    path = as_json(litestack(tmp_path, "backup", "--json"))["path"]
    (tmp_path / "data" / "restore.unfinished").write_text("an older backup")
    refused = litestack(tmp_path, "status")
    assert refused.returncode == 1
    assert "A restore was interrupted" in refused.stderr

    done = litestack(tmp_path, "restore", path, "--yes")
    assert done.returncode == 0, done.stderr
    assert run(tmp_path, READ) == "first\n"


def test_a_backup_of_nothing_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(SHOP)
    done = litestack(tmp_path, "backup")
    assert done.returncode == 1
    assert "no database" in done.stderr


def test_something_else_is_not_restored(shop: Path) -> None:
    (shop / "other").mkdir()
    done = litestack(shop, "restore", "other", "--yes")
    assert done.returncode == 1
    assert "is not a backup" in done.stderr

"""litestack.backup(), as a task of the app calls it."""

from __future__ import annotations

from pathlib import Path

import pytest
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import text

from flask_litestack import BackupError, Litestack, LockError, backups
from flask_litestack.sqlite.backup import verify
from flask_litestack.testing import JobTester

from .conftest import Post


def test_a_task_makes_a_backup_while_the_app_has_the_files_open(
    app: Flask, litestack: Litestack, tmp_path: Path
) -> None:
    made: list[Path] = []

    @litestack.task
    def back_up() -> None:
        made.append(litestack.backup(tmp_path / "elsewhere", compress=True))

    (tmp_path / "data" / "secret_key").write_text("secret")
    with app.app_context():
        litestack.cache.set("a", 1)
        back_up.enqueue()
    JobTester(app).run()
    rows = {file.name: file.rows for file in verify(made[0]).files}
    assert set(rows) == {"data.sqlite3", "secret_key"}
    assert (rows["data.sqlite3"] or {})["post"] == 1
    with app.app_context(), litestack.db.write() as session:  # the locks are still ours
        session.add(Post(title="After"))


def test_backups_are_in_the_data_folder_and_the_oldest_go(
    app: Flask, litestack: Litestack, tmp_path: Path
) -> None:
    with app.app_context():
        made = [litestack.backup(keep=2) for _ in range(3)]
    kept = [path.name for path in (tmp_path / "data" / "backups").iterdir() if path.is_dir()]
    assert sorted(kept) == [path.name for path in made[1:]]


def test_a_backup_in_a_transaction_that_has_written_is_refused(
    app: Flask, litestack: Litestack
) -> None:
    with app.app_context(), litestack.db.write(), pytest.raises(LockError):
        litestack.backup()


def test_there_must_be_something_to_back_up(tmp_path: Path) -> None:
    app, litestack = Flask("empty"), Litestack()
    app.config["LITESTACK_DATA_PATH"] = tmp_path / "data"
    litestack.init_app(app)
    with app.app_context(), pytest.raises(BackupError, match="no database"):
        litestack.backup()


def test_every_database_of_an_adopted_object_is_copied_as_one(tmp_path: Path) -> None:
    """Whatever it is called: a plain copy of one that is in use would be worth nothing."""
    db = SQLAlchemy()
    litestack = Litestack(db=db)
    app = Flask("shop")
    app.config["LITESTACK_DATA_PATH"] = tmp_path / "data"
    app.config["SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{tmp_path}/data/shop.db"
    app.config["SQLALCHEMY_BINDS"] = {"users": f"sqlite:///{tmp_path}/elsewhere/users.db"}
    for folder in ("data", "elsewhere"):
        (tmp_path / folder).mkdir()
    (tmp_path / "data" / "notes.db").write_text("no database of the app")
    db.init_app(app)
    litestack.init_app(app)
    with app.app_context():
        for engine in db.engines.values():
            with engine.begin() as connection:
                connection.execute(text("CREATE TABLE t (n)"))
                connection.execute(text("INSERT INTO t VALUES (1)"))
        manifest = verify(litestack.backup())
        litestack.db.dispose()
    assert {file.name: file.rows for file in manifest.files} == {
        "shop.db": {"t": 1},
        "users.db": {"t": 1},
        "notes.db": None,
    }


def test_what_would_be_wrong_elsewhere_or_later_is_left_out(
    app: Flask, litestack: Litestack, tmp_path: Path
) -> None:
    for name in (
        "secret_key",
        "machine",
        "machine.0123456789abcdef",
        "migration.lock",
        "litestream.yml",
        "cable.damaged-1700000000",
        "cache.sqlite3.corrupt",
        "2026-11-22T03-00-00-000Z.tar.gz",
        ".secret_key.1234",
    ):
        (tmp_path / "data" / name).touch()
    with app.app_context():
        litestack.backup()
        manifest = verify(litestack.backup())  # nor what the first one has written down
    assert [file.name for file in manifest.files] == ["data.sqlite3", "secret_key"]


def test_a_damaged_file_that_is_left_out_is_warned_of(
    app: Flask, litestack: Litestack, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "data" / "cable.sqlite3").write_text("no database")
    with app.app_context():
        manifest = verify(litestack.backup())
    assert list(manifest.left_out) == ["cable.sqlite3"]
    assert "cable.sqlite3 is damaged, and not in the backup" in caplog.text


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"path": "/a", "created_at": "soon"}'])
def test_a_damaged_note_of_the_last_backup_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / backups.LAST).write_text(content)
    assert backups.last(tmp_path) is None

"""litestack.backup(), as a task of the app calls it."""

from __future__ import annotations

from pathlib import Path

import pytest
from flask import Flask

from flask_litestack import BackupError, Litestack, LockError
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

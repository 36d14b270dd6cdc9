from __future__ import annotations

import multiprocessing
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from flask import Flask
from sqlalchemy import inspect, text

from blog import create_app, litestack, migrate
from blog.models import Model

from .conftest import Visitor

LONGER_TITLES = """
import sqlalchemy as sa
from alembic import op

revision = "9999"
down_revision = "0002"


def upgrade() -> None:
    with op.batch_alter_table("post") as table:
        table.alter_column("title", type_=sa.String(300))
"""


def test_the_migrations_make_what_the_models_say(app: Flask) -> None:
    with app.app_context(), litestack.db.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Model.metadata) == []


def test_the_migrations_can_be_taken_back(app: Flask) -> None:
    runner = app.test_cli_runner()
    assert runner.invoke(args=["db", "downgrade", "base"]).exit_code == 0
    with app.app_context():
        assert inspect(litestack.db.engine).get_table_names() == ["alembic_version"]
    assert runner.invoke(args=["db", "upgrade"]).exit_code == 0


def start(data_path: str) -> None:
    with create_app({"LITESTACK_DATA_PATH": data_path}).app_context():
        migrate.run_pending()


def test_many_processes_starting_at_once_migrate_once(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        pool.map(start, [str(tmp_path)] * 8, chunksize=1)
    app = create_app({"LITESTACK_DATA_PATH": str(tmp_path)})
    with app.app_context():
        assert "post" in inspect(litestack.db.engine).get_table_names()


def test_a_start_with_nothing_to_migrate_does_not_load_alembic(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(str(tmp_path))
    monkeypatch.setenv("LITESTACK_DATA_PATH", str(tmp_path))
    code = (
        "import sys; from blog import create_app, migrate;"
        "create_app().app_context().push();"
        "migrate.run_pending(); print('alembic' in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"


def test_an_older_release_starts_on_a_newer_database(
    app: Flask, reader: Visitor, caplog: pytest.LogCaptureFixture
) -> None:
    with app.app_context():
        litestack.db.session.execute(text("UPDATE alembic_version SET version_num = 'f00'"))
        litestack.db.session.commit()
        migrate.run_pending()
    assert "The database is at migration f00" in caplog.text
    assert reader.get("/").status_code == 200


def test_changing_a_parent_table_keeps_its_children(
    app: Flask, ann: Visitor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite changes a column by copying the table; dropping the old one must not cascade."""
    url = ann.publish("Post")
    ann.comment(url, "Still here")
    folder = shutil.copytree(migrate.FOLDER, tmp_path / "migrations")
    (folder / "versions" / "9999_longer_titles.py").write_text(LONGER_TITLES)
    monkeypatch.setattr(migrate, "FOLDER", folder)
    with app.app_context():
        migrate.run_pending()
        columns = {c["name"]: c for c in inspect(litestack.db.engine).get_columns("post")}
    assert columns["title"]["type"].length == 300
    assert "Still here" in ann.see(url)

"""Migrations that copy a table must not delete the rows that refer to it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.operations import Operations
from flask import Flask
from sqlalchemy import Integer, func, select

from flask_litestack import Litestack
from flask_litestack.alembic import include_object, safe_migration
from flask_litestack.errors import TransactionError
from flask_litestack.sqlite.schema import Schema
from flask_litestack.sqlite.tuning import raw

from .cli.commands import flask
from .conftest import Comment, Model, Post
from .servers import TREE, environment

DOCS = TREE / "docs" / "database.md"


def migrate(litestack: Litestack, change: Callable[[Operations], None]) -> None:
    with safe_migration(litestack.db.engine) as connection:
        context = MigrationContext.configure(connection, opts={"render_as_batch": True})
        change(Operations(context))


def retype_the_parent(operations: Operations) -> None:
    with operations.batch_alter_table("post", recreate="always") as batch:
        batch.alter_column("views", type_=Integer(), nullable=True)


def add_comments(litestack: Litestack) -> None:
    with litestack.db.write() as session:
        session.add_all(Comment(post_id=1, text=f"{n}") for n in range(30))


def count_comments(litestack: Litestack) -> int:
    return litestack.db.session.scalar(select(func.count(Comment.id))) or 0


def test_a_parent_table_is_copied_without_losing_its_children(
    app: Flask, litestack: Litestack
) -> None:
    """Plain batch mode drops the old table, and with it all 30 comments."""
    with app.app_context():
        add_comments(litestack)
        migrate(litestack, retype_the_parent)
        assert count_comments(litestack) == 30
        connection = raw(litestack.db.session.connection())
        assert connection.execute("PRAGMA foreign_keys").fetchone() == (1,)


def test_a_failing_migration_changes_nothing(app: Flask, litestack: Litestack) -> None:
    def fail(operations: Operations) -> None:
        retype_the_parent(operations)
        operations.execute("CREATE TABLE half (a)")
        raise ZeroDivisionError

    with app.app_context():
        add_comments(litestack)
        with pytest.raises(ZeroDivisionError):
            migrate(litestack, fail)
        assert count_comments(litestack) == 30
        names = raw(litestack.db.session.connection()).execute(
            "SELECT name FROM sqlite_schema WHERE name LIKE '%half%' OR name LIKE '%tmp%'"
        )
        assert names.fetchall() == []


def test_rows_that_would_refer_to_nothing_stop_the_migration(
    app: Flask, litestack: Litestack
) -> None:
    def orphan(operations: Operations) -> None:
        operations.execute("DELETE FROM post")

    with app.app_context():
        add_comments(litestack)
        with pytest.raises(TransactionError, match="30 rows that refer to nothing"):
            migrate(litestack, orphan)
        assert litestack.db.session.scalar(select(func.count(Post.id))) == 1


def test_our_own_tables_stay_out_of_autogenerate(app: Flask, litestack: Litestack) -> None:
    with app.app_context():
        schema = Schema(
            "jobs",
            [
                [
                    "CREATE TABLE litestack_jobs (a)",
                    "CREATE INDEX litestack_jobs_a ON litestack_jobs (a)",
                ]
            ],
        )
        schema.ensure(raw(litestack.db.session.connection()))
        with litestack.db.engine.connect() as connection:
            context = MigrationContext.configure(
                connection, opts={"include_object": include_object}
            )
            assert compare_metadata(context, Model.metadata) == []


#: An app as Flask-SQLAlchemy and Flask-Migrate have it, adopted.
ADOPTED = """
from flask import Flask
from flask_migrate import Migrate
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import ForeignKey
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from flask_litestack import Litestack
from flask_litestack.alembic import include_object

class Model(DeclarativeBase):
    pass

db = SQLAlchemy(model_class=Model)
litestack = Litestack(db=db)
migrate = Migrate(include_object=include_object)

class Post(db.Model):
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]

class Comment(db.Model):
    id: Mapped[int] = mapped_column(primary_key=True)
    post_id: Mapped[int] = mapped_column(ForeignKey(Post.id, ondelete="CASCADE"))

@litestack.task
def work():
    pass

def create_app():
    app = Flask(__name__, instance_path=__file__.replace("shop.py", "instance"))
    app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite:///data.sqlite3"
    db.init_app(app)
    litestack.init_app(app)
    migrate.init_app(app, db)

    @app.cli.command()
    def fill():
        db.session.add(Post(id=1, title="One"))
        db.session.flush()
        db.session.add_all(Comment(post_id=1) for _ in range(30))
        work.enqueue()
        db.session.commit()

    @app.cli.command()
    def count():
        print(db.session.query(Comment).count(), "comments,", len(litestack.jobs.list()), "job")

    return app
"""

CHANGED = ("    title: Mapped[str]\n", "    title: Mapped[str | None]\n")


def test_flask_migrate_changes_a_table_of_an_adopted_app_and_no_row_is_lost(
    tmp_path: Path,
) -> None:
    (tmp_path / "shop.py").write_text(ADOPTED)
    done(flask(tmp_path, "db", "init"))
    env = tmp_path / "migrations" / "env.py"
    env.write_text(with_the_lines_of_the_docs(env.read_text()))
    done(flask(tmp_path, "db", "migrate", "-m", "first"))
    done(flask(tmp_path, "db", "upgrade"))
    done(flask(tmp_path, "fill"))

    (tmp_path / "shop.py").write_text(ADOPTED.replace(*CHANGED))
    done(flask(tmp_path, "db", "migrate", "-m", "second"))
    [second] = (tmp_path / "migrations" / "versions").glob("*_second.py")
    assert "with op.batch_alter_table('post'" in second.read_text()
    assert "litestack" not in second.read_text()
    done(flask(tmp_path, "db", "upgrade"))

    assert done(flask(tmp_path, "count")) == "30 comments, 1 job\n"
    done(flask(tmp_path, "db", "check"))


def with_the_lines_of_the_docs(env: str) -> str:
    """Change an ``env.py`` as the diff in docs/database.md says."""
    [diff] = re.findall(r"```diff\n(.*?)```", DOCS.read_text(), re.DOTALL)
    first, _, removed, added = diff.splitlines()
    assert removed[1:] in env
    return f"{first[1:]}\n{env.replace(removed[1:], added[1:])}"


def test_alembic_alone_does_the_same(tmp_path: Path) -> None:
    [env] = [
        block
        for block in re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
        if "context.run_migrations()" in block
    ]
    (tmp_path / "shop.py").write_text(ADOPTED)
    done(alembic(tmp_path, "init", "migrations"))
    (tmp_path / "migrations" / "env.py").write_text(env)
    done(alembic(tmp_path, "revision", "--autogenerate", "-m", "first"))
    done(alembic(tmp_path, "upgrade", "head"))
    done(flask(tmp_path, "fill"))

    (tmp_path / "shop.py").write_text(ADOPTED.replace(*CHANGED))
    done(alembic(tmp_path, "revision", "--autogenerate", "-m", "second"))
    done(alembic(tmp_path, "upgrade", "head"))

    assert done(flask(tmp_path, "count")) == "30 comments, 1 job\n"
    done(alembic(tmp_path, "check"))


def alembic(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "alembic", *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=60
    )


def done(process: subprocess.CompletedProcess[str]) -> str:
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout

"""Migrations that copy a table must not delete the rows that refer to it."""

from __future__ import annotations

from collections.abc import Callable

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

from .conftest import Comment, Model, Post


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

"""How Alembic runs the migrations: one process at a time, all of them in one transaction."""

from __future__ import annotations

from typing import Any, Literal

import flask_litestack.alembic
from alembic import context
from flask import current_app
from sqlalchemy import TypeDecorator

litestack = current_app.extensions["litestack"]


def render_item(kind: str, item: Any, autogen_context: object) -> str | Literal[False]:
    """Write a type of our own as the one it is stored as: a migration must outlive our code."""
    if kind == "type" and isinstance(item, TypeDecorator):
        return f"sa.{item.impl_instance!r}"
    return False


# Another process may be migrating: this takes the write lock before anything is looked at.
with flask_litestack.alembic.safe_migration(litestack.db.engine) as connection:
    context.configure(
        connection=connection,
        target_metadata=litestack.db.metadata,
        render_as_batch=True,
        render_item=render_item,
        include_object=flask_litestack.alembic.include_object,
    )
    context.run_migrations()

"""Migrations on SQLite that lose nothing, for an Alembic ``env.py``.

SQLite can change most things of a table only by copying it, which Alembic's batch mode does; but
dropping the old table deletes, by cascade, the rows that refer to it, and foreign keys cannot be
switched off inside a transaction. Hence this order: foreign keys off, begin, migrate, check every
foreign key, commit, foreign keys on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine

from .errors import TransactionError
from .sqlite.tuning import raw

PREFIX = "litestack_"


@contextmanager
def safe_migration(engine: Engine) -> Iterator[Connection]:
    """Yield a connection inside one transaction with the write lock, foreign keys switched off.

    Everything the migration did is committed at the end, or nothing of it::

        with safe_migration(engine) as connection:
            context.configure(
                connection=connection,
                target_metadata=metadata,
                render_as_batch=True,
                include_object=include_object,
            )
            context.run_migrations()

    :raises TransactionError: if a row refers to one that is no longer there; nothing is changed.
    """
    with engine.connect() as connection:
        dbapi = raw(connection)
        dbapi.execute("PRAGMA foreign_keys = OFF")
        try:
            with connection.begin():
                dbapi.begin_immediate()
                broken_before = set(_broken(connection))
                yield connection
                broken = [row for row in _broken(connection) if row not in broken_before]
                if broken:
                    raise TransactionError(_message(broken))
        finally:
            dbapi.rollback()
            dbapi.execute("PRAGMA foreign_keys = ON")


def include_object(
    thing: object, name: str | None, kind: str, reflected: bool, compare_to: object
) -> bool:
    """Leave the tables of flask-litestack itself out of ``alembic revision --autogenerate``."""
    table = name if kind == "table" else getattr(getattr(thing, "table", None), "name", None)
    return not (table or "").startswith(PREFIX)


def _broken(connection: Connection) -> list[tuple[Any, ...]]:
    rows = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
    return [tuple(row) for row in rows]


def _message(broken: list[tuple[Any, ...]]) -> str:
    table, rowid, parent, _ = broken[0]
    return (
        f"the migration would leave {len(broken)} rows that refer to nothing, the first in "
        f"{table} (rowid {rowid}), which refers to {parent}. Nothing was changed: delete or "
        "re-point these rows in the migration."
    )

"""Transactions on an adopted database that is not SQLite, such as PostgreSQL.

A tuned connection knows by itself what was written and what waits for its commit. Here both are
told by SQLAlchemy's events: by the text of the statements, and by how the session's transaction
and its savepoints end.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any
from weakref import ref

from sqlalchemy import Connection, Engine, RootTransaction, event
from sqlalchemy.orm import Session, SessionTransaction

from .sqlite.work import Work, run_after_commit, run_after_rollback

_NOTES = "litestack_notes"
_LEVELS = "litestack_levels"

#: What changes rows or tables. The rest, a SELECT of a function that writes for one, cannot be
#: told from what only reads, or sets something: who does no more than that may never commit.
_CHANGE = re.compile(
    r"""
    (?:\s++|--[^\n]*+\n|/\*(?>.*?\*/))*+
    (?:
        (?:INSERT|UPDATE|DELETE|MERGE|REPLACE|COPY|TRUNCATE|CREATE|ALTER|DROP|CALL)\b
        |WITH\b.*\b(?:INSERT\s+INTO|UPDATE\s.{1,200}\sSET|DELETE\s+FROM|MERGE\s+INTO)\b
    )
    """,
    re.VERBOSE | re.DOTALL | re.IGNORECASE,
)


def watch(engine: Engine) -> None:
    """Notice what is changed on an engine, and how the transactions of sessions end."""
    if not event.contains(engine, "after_cursor_execute", _note_change):
        event.listen(engine, "after_cursor_execute", _note_change)
        event.listen(engine, "commit", _before_commit)
    if not event.contains(Session, "after_commit", _note_commit):
        event.listen(Session, "after_commit", _note_commit)
        event.listen(Session, "after_transaction_end", _after_end)


def has_changes(connection: Connection) -> bool:
    """Tell whether the transaction of a connection, of a watched engine, has changed something."""
    notes = _notes(connection)
    return notes is not None and notes.changed


def awaits_commit(session: Session) -> bool:
    """Tell whether something is to be done after the session's commit."""
    return bool(session.info.get(_LEVELS))


def after_commit(session: Session, work: Work) -> None:
    """Do work when the session's transaction is committed, as a tuned connection does.

    It belongs to the innermost open savepoint. What is to come before the COMMIT does so on the
    default database.

    :raises PendingRollbackError: after a flush that failed.
    """
    connection = session.connection()
    levels: _Levels = session.info.setdefault(_LEVELS, {})
    levels.setdefault(_innermost(session), _Level()).works.append(work)
    _noted(connection).levels = levels


@dataclass
class _Level:
    """What waits for the commit of a transaction, or for the release of a savepoint."""

    works: list[Work] = field(default_factory=list)
    is_committed: bool = False

    def prepare(self) -> None:
        for index, work in enumerate(self.works):
            if work.before is not None:
                work.before()
                self.works[index] = work._replace(before=None)


_Levels = dict[SessionTransaction, _Level]


@dataclass
class _Notes:
    """What is known of one transaction of a DB-API connection, which has others afterwards."""

    transaction: ref[RootTransaction]
    changed: bool = False
    levels: _Levels = field(default_factory=dict)


def _notes(connection: Connection) -> _Notes | None:
    notes: _Notes | None = connection.info.get(_NOTES)
    if notes is None or notes.transaction() is not connection.get_transaction():
        return None
    return notes


def _noted(connection: Connection) -> _Notes:
    notes = _notes(connection)
    if notes is None:
        transaction = connection.get_transaction()
        assert transaction is not None
        notes = connection.info[_NOTES] = _Notes(ref(transaction))
    return notes


def _innermost(session: Session) -> SessionTransaction:
    transaction = session.get_nested_transaction() or session.get_transaction()
    assert transaction is not None
    return transaction


def _note_change(connection: Connection, cursor: object, statement: str, *_: Any) -> None:
    if _CHANGE.match(statement) and not connection._is_autocommit_isolation():
        _noted(connection).changed = True


def _before_commit(connection: Connection) -> None:
    notes = _notes(connection)
    if notes is None:
        return
    try:
        for level in notes.levels.values():
            level.prepare()
    except BaseException:
        # SQLAlchemy takes the transaction for ended, and would lend the connection as it is.
        connection.dialect.do_rollback(connection.connection)
        raise


def _note_commit(session: Session) -> None:
    """Note the commit, or the release of a savepoint: SQLAlchemy's event is the same."""
    if levels := session.info.get(_LEVELS):
        level = levels.get(_innermost(session))
        if level is not None:
            level.is_committed = True


def _after_end(session: Session, transaction: SessionTransaction) -> None:
    levels: _Levels = session.info.get(_LEVELS, {})
    level = levels.pop(transaction, None)
    if level is None:
        return
    works = level.works
    if transaction.nested:
        if level.is_committed:
            levels.setdefault(_innermost(session), _Level()).works.extend(works)
    elif level.is_committed:
        # What could not be prepared right before the COMMIT, in a session that is part of a
        # larger transaction for one, comes right before the work.
        run_after_commit(
            function
            for work in works
            for function in (work.before, work.function)
            if function is not None
        )
    else:
        run_after_rollback(works)

"""Makes a SQLAlchemy engine use our connections."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any, Literal
from weakref import WeakSet, ref

from sqlalchemy import Engine, event
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.pool import ConnectionPoolEntry, Pool
from sqlalchemy.sql.selectable import ForUpdateArg, GenerativeSelect

from ..errors import ConfigError
from . import driver
from .connection import Connection
from .statements import FOR_UPDATE

log = logging.getLogger(__name__)

_tuned: WeakSet[Engine] = WeakSet()
_inherited: list[Pool] = []


def tune(
    engine: Engine,
    *,
    busy_timeout: float = 5.0,
    synchronous: Literal["OFF", "NORMAL", "FULL"] = "NORMAL",
    guard: bool = True,
    describe: Callable[[], str] | None = None,
) -> None:
    """Give an engine on a SQLite file our transactions, pragmas and write queue.

    Works on any ``sqlite+pysqlite`` engine, at any time: connections already in its pool are
    replaced. A second call changes nothing. An engine in memory is good for tests only.

    :param busy_timeout: seconds a transaction waits for the write lock.
    :param synchronous: FULL syncs each commit to disk, NORMAL within a second, OFF never.
    :param guard: refuse other ways to open the file in this process.
    :param describe: says what the calling thread does, for messages about the write lock.
    :raises ConfigError: if the engine is not on SQLite's synchronous driver.
    """
    if engine.dialect.name != "sqlite" or engine.dialect.driver != "pysqlite":
        raise ConfigError(
            f"{engine.url.render_as_string()} cannot be tuned: only sqlite:/// URLs (the pysqlite "
            "driver) can."
        )
    if engine in _tuned:
        return
    _tuned.add(engine)
    if not engine.url.database or engine.url.database == ":memory:":
        log.warning("%s is in memory: good for tests, gone when the process ends", engine.url)

    # Two SQLite libraries in one process drop each other's locks: this engine uses ours.
    engine.dialect.dbapi = driver.module  # type: ignore[assignment]
    engine.dialect.statement_compiler = _compiler(engine.dialect)

    def do_connect(
        dialect: Dialect,
        record: ConnectionPoolEntry,
        arguments: list[Any],
        options: dict[str, Any],
    ) -> Connection:
        entry = ref(record)  # which has the connection
        options = {"check_same_thread": False, **options, "factory": Connection, "timeout": 0}
        options["isolation_level"] = None
        connection: Connection = driver.module.connect(*arguments, **options)
        connection.tune(
            busy_timeout=busy_timeout,
            synchronous=synchronous,
            watch=guard,
            describe=describe,
            is_lent=lambda: (found := entry()) is not None and found.in_use,
        )
        return connection

    def connect(connection: object, record: object) -> None:
        if not isinstance(connection, Connection):
            raise ConfigError(
                f"the engine of {engine.url} makes its connections by a creator= of its own; "
                "leave that out, or return flask_litestack.sqlite.connect(path) from it."
            )

    def checkin(connection: object, record: ConnectionPoolEntry) -> None:
        if isinstance(connection, Connection) and connection.altered:
            record.invalidate()

    event.listen(engine, "do_connect", do_connect)
    event.listen(engine, "connect", connect)
    event.listen(engine, "checkin", checkin)
    engine.clear_compiled_cache()
    engine.dispose()


def raw(connection: Any) -> Connection:
    """Return our DB-API connection under a SQLAlchemy connection.

    :raises ConfigError: if its engine is not tuned, or not on SQLite.
    """
    found = connection.connection.dbapi_connection
    if not isinstance(found, Connection):
        if connection.dialect.name != "sqlite":
            raise ConfigError(
                f"{connection.engine.url} is not SQLite, which jobs, db.write() and db.read() need."
            )
        raise ConfigError(
            f"{connection.engine.url} is not tuned; call flask_litestack.tune(engine)."
        )
    return found


def _compiler(dialect: Dialect) -> type[Any]:
    class Compiler(dialect.statement_compiler):  # type: ignore[name-defined,misc]
        """Leaves a mark for SELECT ... FOR UPDATE, which SQLite's SQL has no words for."""

        def for_update_clause(self, select: GenerativeSelect, **options: Any) -> str:
            clause: ForUpdateArg | None = select._for_update_arg
            return f" {FOR_UPDATE}" if clause is not None else ""

    return Compiler


def _after_fork_in_child() -> None:
    for engine in list(_tuned):
        # Its connections are the parent's; see the module fork.
        _inherited.append(engine.pool)
        engine.dispose(close=False)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)

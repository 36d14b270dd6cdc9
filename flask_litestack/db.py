"""The database of an app: engine, sessions, and transactions that never say "locked"."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flask import g, has_request_context, request
from flask.globals import app_ctx
from sqlalchemy import URL, Engine, MetaData, create_engine
from sqlalchemy import Connection as SQLAlchemyConnection
from sqlalchemy.exc import InvalidRequestError, PendingRollbackError
from sqlalchemy.orm import Session
from sqlalchemy.orm.session import SessionTransactionOrigin
from sqlalchemy.pool import QueuePool

from . import untuned
from .config import Settings
from .errors import ConfigError, ReadOnlyError, TransactionError
from .perapp import PerApp
from .process import activity
from .sqlite import driver, filesystem
from .sqlite.connection import Connection, connect
from .sqlite.databases import Databases
from .sqlite.tuning import raw, tune
from .sqlite.work import Work, is_after_commit

FILE = "data.sqlite3"

#: Connections kept open. More are made when more threads need them, and closed after use.
POOL_SIZE = 16

_BLOCK = "litestack_block"


class Database:
    """``litestack.db``. Every member needs an app context.

    :param settings: returns the settings of the current app.
    :param metadata: the tables of the app's models, for create_all() and migrations.
    :param adopted: a Flask-SQLAlchemy or Flask-SQLAlchemy-Lite object whose session and engines
        are used instead of our own.
    """

    def __init__(
        self,
        settings: Callable[[], Settings],
        metadata: MetaData | None = None,
        adopted: Any = None,
    ) -> None:
        self._settings = settings
        self._metadata = metadata
        self._adopted = adopted
        self._engines = PerApp(lambda app: self._make_engine())
        self._key = f"_litestack_session_{id(self)}"
        self._unit_key = f"_litestack_unit_{id(self)}"

    @property
    def path(self) -> Path:
        """The file of the app's tables."""
        path = _file_of(self.engine)
        if path is None:
            raise ConfigError(self.why_no_file())
        return path

    def why_no_file(self) -> str:
        """Say why there is no file of the app's tables, which jobs and backup need; "" if any."""
        engine = self.engine
        if _file_of(engine) is not None:
            return ""
        if (kind := engine.dialect.name) == "sqlite":
            found = "in memory, which is good for tests only"
        else:
            found = f"{kind}, not SQLite"
        return f"the app's database is {found}: jobs and backup are not available."

    @property
    def engine(self) -> Engine:
        """The engine of the current app: tuned, unless it is an adopted one not on SQLite."""
        return self._engines.current()

    @property
    def metadata(self) -> MetaData:
        """The tables given to ``Litestack(metadata=...)``, or those of the adopted object."""
        metadata = getattr(self._adopted, "metadata", None) or self._metadata
        if metadata is None:
            raise ConfigError("pass your models' tables: Litestack(metadata=Model.metadata).")
        return metadata

    @property
    def session(self) -> Session:
        """The session of this app context; it is closed when the context ends."""
        if self._adopted is not None:
            adopted = self._adopted.session
            joined: Session = adopted() if callable(adopted) else adopted
            return joined
        session: Session | None = _state().get(self._key)
        if session is None:
            session = Session(self.engine)
            setattr(g, self._key, session)
        return session

    def files(self, folder: Path) -> Databases:
        """Name the databases of the app in the data folder and of all its engines; open none."""
        if self._adopted is None:
            return Databases.of(folder, [folder / FILE])
        engines = [_default_engine(self._adopted), *self._adopted.engines.values()]
        return Databases.of(folder, filter(None, map(_file_of, engines)))

    def dispose(self) -> None:
        """Close the connections that the pools of all engines keep."""
        self.engine.dispose()
        if self._adopted is not None:
            for engine in self._adopted.engines.values():
                engine.dispose()

    def create_all(self) -> None:
        """Create the tables that are missing, in one transaction."""
        with self.engine.connect() as connection:
            raw(connection).begin_immediate()  # so that no one else creates them meanwhile
            self.metadata.create_all(connection)
            connection.commit()

    def connect(self) -> Connection:
        """Open a DB-API connection of its own to the app's file. The caller closes it."""
        settings = self._settings()
        return connect(
            self.path,
            busy_timeout=settings.busy_timeout,
            synchronous=settings.synchronous,
            guard=settings.guard,
            describe=_describe,
        )

    @contextmanager
    def write(self) -> Iterator[Session]:
        """Read and then write, alone: takes the write lock first, commits at the end.

        Yields the context's session. Whatever it had loaded is loaded anew, because another
        transaction may have changed it. An exception rolls back. Inside another ``write()`` or an
        explicit ``session.begin()`` it joins: the outer block commits. Inside a job it is a
        savepoint of the job's transaction, which the worker commits. It locks the default
        database; another bind of an adopted object takes its own lock at the first write to it.

        :raises TransactionError: if the session has changes that are not committed yet: they were
            computed without the lock. Commit them first, or make them inside the block.
        :raises ReadOnlyError: inside ``read()``.
        :raises LockTimeout: if the lock was not free within ``LITESTACK_BUSY_TIMEOUT``.
        """
        session = self.session
        block = session.info.get(_BLOCK)
        if block == "read":
            raise ReadOnlyError("db.write() inside db.read(): end the reading first.")
        if block == "write":
            yield session
        elif _is_explicit(session):
            self._lock(session)
            yield session
        elif self._in_unit():
            self._lock(session)
            with session.begin_nested():
                yield session
        else:
            _refuse_uncommitted(session, _used(session), "db.write()")
            if session.in_transaction():
                session.rollback()  # it has only read; nothing is lost
            with session.begin():
                self._lock(session)
                session.info[_BLOCK] = "write"
                try:
                    yield session
                finally:
                    del session.info[_BLOCK]

    @contextmanager
    def read(self) -> Iterator[Session]:
        """Read several times from one state of the database: a consistent snapshot.

        Yields the context's session, reloading what it had loaded before. Results may be streamed
        (``yield_per``) here. Writing is an error. Inside ``write()`` or ``read()`` it joins.

        :raises TransactionError: if the session has uncommitted changes, or ends inside.
        """
        session = self.session
        if session.info.get(_BLOCK) or self._holds_lock(session):
            yield session
            return
        _refuse_uncommitted(session, _used(session, self.engine), "db.read()")
        connection = self._raw(session)
        snapshot = connection.begin_read()
        session.expire_all()
        session.info[_BLOCK] = "read"
        try:
            yield session
            if connection.snapshot is not snapshot:
                raise TransactionError(
                    "the session was committed or rolled back inside db.read(): what was read "
                    "afterwards is not of the same state."
                )
        finally:
            del session.info[_BLOCK]
            connection.end_read(snapshot)

    def after_commit(
        self,
        function: Callable[[], object],
        *,
        before: Callable[[], object] | None = None,
        failed: Callable[[], object] | None = None,
    ) -> None:
        """Call ``function`` after the session's transaction is committed.

        At once if the session has neither uncommitted changes nor an explicit transaction; never
        if the transaction, or the savepoint this was called in, is rolled back. It runs on the
        committing thread and must not use the session; an exception in it is logged.

        :param before: called right before the COMMIT, or right before ``function``. It must not
            use the session either; an exception in it keeps the transaction from being committed.
        :param failed: called if the transaction is rolled back, when its COMMIT fails, say; not
            when only the savepoint is.
        """
        if not self.joins():
            if before is not None:
                before()
            function()
        elif self.engine.dialect.name == "sqlite":
            self._raw(self.session).after_commit(function, before=before, failed=failed)
        else:
            untuned.after_commit(self.session, Work(function, before, failed))

    def joins(self) -> bool:
        """Tell whether something done now belongs to a transaction that the session has open.

        True inside ``write()``, an explicit ``begin()`` or ``begin_nested()``, and when there are
        pending changes or an uncommitted write. A session that has only read has none. Always
        true after :meth:`begin_unit`.
        """
        return not self.is_over() and (self._in_unit() or self.has_uncommitted())

    def is_over(self) -> bool:
        """Tell whether the session's transaction has just ended, and no other can begin yet.

        So it is for work after the commit, and in SQLAlchemy's own events ``after_commit`` and
        ``after_rollback``.
        """
        if is_after_commit():
            return True
        if self._adopted is None and self._key not in _state():
            return False  # the session has not been used
        session = self.session
        if session.is_active or session.in_nested_transaction():
            return False
        try:
            session.connection(bind_arguments={"bind": self.engine})
        except PendingRollbackError:
            return False  # after a flush that failed; whoever goes on with it must be told
        except InvalidRequestError:
            return True
        return False

    def holds_changes(self) -> bool:
        """Tell whether something waits for the session's commit before others can see it.

        Unlike :meth:`joins` not in a job that has not changed anything yet, and not after a
        failed flush, when the session can only be rolled back.
        """
        if is_after_commit() or (self._adopted is None and self._key not in _state()):
            return False  # the session is not ready for another transaction, or was not used
        return self.session.is_active and self.has_uncommitted()

    def begin_unit(self) -> None:
        """Make this app context one transaction, which its owner commits, whatever it begins with.

        ``write()`` and all that joins a transaction then join this one. The worker does so for
        each job.
        """
        _state()[self._unit_key] = True

    def end_unit(self) -> None:
        """End what :meth:`begin_unit` began: what is not committed is rolled back."""
        _state().pop(self._unit_key, None)
        if self._adopted is not None or self._key in _state():
            self.session.rollback()

    def has_uncommitted(self) -> bool:
        """Tell whether the session has something to commit, or an explicit transaction open.

        On an adopted database that is not SQLite a write is told by the text of its statement:
        an INSERT, say, but not a SELECT of a function that writes. What was written to an engine
        that is neither tuned nor adopted cannot be told. In a unit, whose owner then commits it,
        any transaction on either counts.
        """
        if self._adopted is None and self._key not in _state():
            return False  # the session has not been used
        session = self.session
        if _is_explicit(session) or _is_pending(session):
            return True
        if not session.is_active:
            return True  # after a flush that failed: whoever goes on with it must be told
        for used in _used(session):
            connection = used.connection.dbapi_connection
            if not isinstance(connection, Connection):
                if self._in_unit() or untuned.has_changes(used):
                    return True
            elif connection.writing or connection.awaits_commit:
                return True
        return self._adopted is not None and untuned.awaits_commit(session)

    def session_connection(self) -> Connection:
        """Return the DB-API connection that the session uses, and begins its transaction on."""
        return self._raw(self.session)

    def close_session(self) -> None:
        """Close this context's session, if it was used; what is not committed is rolled back."""
        if self._adopted is None and (session := g.pop(self._key, None)) is not None:
            session.close()

    def _in_unit(self) -> bool:
        return self._unit_key in _state()

    def _make_engine(self) -> Engine:
        settings = self._settings()
        if self._adopted is not None:
            engine = _default_engine(self._adopted)
            if engine.dialect.name != "sqlite":
                return engine  # its sessions have no write() or read(); see the module untuned
        else:
            url = URL.create("sqlite+pysqlite", database=str(settings.data_path / FILE))
            engine = create_engine(
                url,
                module=driver.module,
                poolclass=QueuePool,
                pool_size=POOL_SIZE,
                max_overflow=-1,
                pool_use_lifo=True,
            )
        tune_with(engine, settings)
        return engine

    def _raw(self, session: Session) -> Connection:
        return raw(session.connection(bind_arguments={"bind": self.engine}))

    def _holds_lock(self, session: Session) -> bool:
        """Whether the session is alone already, in a transaction that somebody will end."""
        owned = _is_explicit(session) or self._in_unit()
        return owned and self._raw(session).writing

    def _lock(self, session: Session) -> None:
        connection = self._raw(session)
        if not connection.writing:
            _refuse_uncommitted(session, (), "db.write()")
            connection.begin_immediate()
        # Objects loaded before the lock may be out of date, and session.get() would return them.
        # Changes made under the lock (of a savepoint, or of a job) stay.
        if _is_pending(session):
            session.flush()
        session.expire_all()


def tune_with(engine: Engine, settings: Settings) -> None:
    """Tune an engine by an app's settings."""
    tune(
        engine,
        busy_timeout=settings.busy_timeout,
        synchronous=settings.synchronous,
        guard=settings.guard,
        describe=_describe,
    )


def _default_engine(adopted: Any) -> Engine:
    engines = adopted.engines
    for key in (None, "default"):
        if key in engines:
            engine: Engine = engines[key]
            return engine
    raise ConfigError("the adopted db object has no default engine.")


def _file_of(engine: Engine) -> Path | None:
    """The file of an engine; None if it is in memory, or not SQLite's."""
    if engine.dialect.name != "sqlite":
        return None
    (name,), _ = engine.dialect.create_connect_args(engine.url)
    return filesystem.path_of(name)


def _is_pending(session: Session) -> bool:
    return bool(session.new or session.deleted or session.dirty)


def _is_explicit(session: Session) -> bool:
    """Whether the user's own begin() or begin_nested() is open, and will end the transaction."""
    transaction = session.get_transaction()
    return transaction is not None and (
        transaction.origin is SessionTransactionOrigin.BEGIN
        or session.get_nested_transaction() is not None
    )


def _used(session: Session, engine: Engine | None = None) -> list[SQLAlchemyConnection]:
    """Return the connections of the session's transaction: of all its databases, or of one."""
    transaction = session.get_transaction()
    if transaction is None:
        return []
    # In public there is only session.connection(), which would open those that are not used.
    used = {connection for connection, *_ in transaction._connections.values()}
    return [connection for connection in used if engine is None or connection.engine is engine]


def _refuse_uncommitted(
    session: Session, connections: Iterable[SQLAlchemyConnection], what: str
) -> None:
    if _is_pending(session):
        changed = [*session.new, *session.dirty, *session.deleted]
        names = ", ".join(sorted({type(thing).__name__ for thing in changed}))
        found = f"changes of {names} that are not committed"
    else:
        found = next(filter(None, map(_uncommitted, connections)), "")
    if found:
        raise TransactionError(
            f"{what} found {found}. They were made before the lock was taken, so they may "
            f"overwrite newer data. Commit or roll back before {what}, or make them inside the "
            "block."
        )


def _uncommitted(used: SQLAlchemyConnection) -> str:
    connection = used.connection.dbapi_connection
    if not isinstance(connection, Connection):
        return f"a transaction on {used.engine.url!r}, whose writes, if any, are not committed"
    return f"a write to {used.engine.url!r} that is not committed" if connection.writing else ""


def _describe() -> str:
    if has_request_context() and not activity.current.get():
        return f"{request.method} {request.path}"
    return activity.describe()


def _state() -> dict[str, Any]:
    """Return what ``flask.g`` holds, without its proxy: this is asked at each enqueue and job."""
    state: dict[str, Any] = app_ctx._get_current_object().g.__dict__  # type: ignore[attr-defined]
    return state

"""The extension object."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from flask import Flask, Response
from sqlalchemy import Engine, MetaData, event
from sqlalchemy.engine.interfaces import Dialect

from . import backups, config, untuned, up
from .cable import Cable
from .cache.cache import Cache
from .config import Settings
from .db import Database, tune_with
from .errors import ConfigError
from .jobs.queue import JobQueue
from .perapp import PerApp, current_flask
from .sqlite import filesystem
from .sqlite.databases import Databases

NAME = "litestack"

F = TypeVar("F", bound=Callable[[], object])


class Litestack:
    """SQLite as database, cache, job queue and websocket bus of a Flask app.

    :param metadata: the tables of your models: ``Model.metadata`` of a ``DeclarativeBase``.
    :param db: a Flask-SQLAlchemy or Flask-SQLAlchemy-Lite object to adopt: its SQLite engines are
        tuned and its session is used. Call its ``init_app`` before ours.
    """

    def __init__(self, *, metadata: MetaData | None = None, db: Any = None) -> None:
        if metadata is not None and db is not None:
            raise ConfigError("pass either metadata= or db=, which brings its own metadata.")
        if metadata is not None and not isinstance(metadata, MetaData):
            raise ConfigError(f"metadata={metadata!r} must be your models' Model.metadata.")
        if db is not None and not hasattr(type(db), "engines"):
            raise ConfigError(f"db={db!r} must be the object of Flask-SQLAlchemy, or of its Lite.")
        self._adopted = db
        self._settings: WeakKeyDictionary[Flask, Settings] = WeakKeyDictionary()
        # The settings once the data folder is there; it is made on first use.
        self._usable = PerApp(self._prepare)
        self.db = Database(self._usable.current, metadata, db)
        self.cache = Cache()
        self.jobs = JobQueue(self._usable.current, self.db)
        self.task = self.jobs.task
        self.cable = Cable(self._usable.current, self.db)
        self.channel = self.cable.channel
        self._before_serving: list[Callable[[], object]] = []

    def init_app(self, app: Flask) -> None:
        """Register with an app. Creates no file, connection or thread.

        :raises ConfigError: for a wrong setting, or a wrong order of calls.
        """
        registered = app.extensions.get(NAME)
        if registered is not None:
            same = "this" if registered is self else "another"
            raise ConfigError(
                f"init_app was called twice on {app.name!r}: {same} Litestack object is registered."
            )
        settings = config.load(app.config, instance_path=app.instance_path, root_path=app.root_path)
        if self._adopted is not None:
            self._adopt(app, settings)
        else:
            app.teardown_appcontext(self._close_session)
        self.cache.init_app(app)
        self.cable.init_app(app, settings)
        self._settings[app] = settings
        app.extensions[NAME] = self

    @property
    def settings(self) -> Settings:
        """The settings of the current app.

        :raises ConfigError: if ``init_app`` was not called on it.
        """
        app = current_flask()
        settings = self._settings.get(app)
        if settings is None:
            raise ConfigError(
                f"litestack.init_app(app) was not called for the app {app.name!r}; call it in "
                "your app factory."
            )
        return settings

    def before_serving(self, function: F) -> F:
        """Have a function run before the server takes its first request: migrations, for one.

        ``@litestack.before_serving``, on a function without arguments, beside your models rather
        than in the app factory. It runs in an app context, in gunicorn's master before that has
        workers, while no other server starts on the same data folder. An exception in it ends the
        server with a line in the log and exit code 1. Without ``preload_app`` each worker runs it
        as it starts. ``flask run`` and other servers do not run it.
        """
        self._before_serving.append(function)
        return function

    @property
    def functions_before_serving(self) -> Sequence[Callable[[], object]]:
        """The functions given to :meth:`before_serving`, in this order."""
        return tuple(self._before_serving)

    def backup(
        self,
        destination: Path | None = None,
        *,
        keep: int | None = None,
        compress: bool = False,
    ) -> Path:
        """Write a checked backup of every file, of one moment, while the app goes on.

        ``flask litestack backup`` for a task with ``cron=``. Not in a transaction that has written.

        :param destination: the folder for it; by default ``backups`` in the data folder.
        :param keep: how many backups to leave there, the newest; None leaves all.
        :param compress: write one .tar.gz file in place of a folder.
        :return: the new backup, to be copied elsewhere.
        :raises BackupError: if there is no room, the check fails, or another backup is running.
        :raises LockTimeout: if a write lock was not free within ``LITESTACK_BUSY_TIMEOUT``.
        """
        settings = self._usable.current()
        path, _ = backups.backup(settings, self.db, destination, keep=keep, compress=compress)
        return path

    def up(self) -> Response:
        """Answer a host's check of the app, in a view: 200 if the database can be read, else 503.

        With ``?verbose`` and the header ``Authorization: Bearer <LITESTACK_UP_TOKEN>`` it is
        JSON that says what is degraded, too: ``{"status": "ok" or "degraded", "checks": [{"check",
        "severity", "what", "fix"}, ...]}``, of the disk, the jobs and the last backup. None of
        these makes it anything but 200: it would take the only server out of routing.
        """
        return up.answer(self)

    def _prepare(self, app: Flask) -> Settings:
        settings = self.settings
        filesystem.prepare(settings.data_path, self.db.files(settings.data_path))
        return settings

    def _adopt(self, app: Flask, settings: Settings) -> None:
        try:
            with app.app_context():
                engines = list(self._adopted.engines.values())
        except (KeyError, RuntimeError) as error:
            raise ConfigError(
                "call db.init_app(app) before litestack.init_app(app): the engines of the "
                "adopted db object do not exist yet."
            ) from error
        for engine in engines:
            if engine.dialect.name == "sqlite":
                _prepare_at_first_connect(engine, settings.data_path)
                tune_with(engine, settings)
            else:
                untuned.watch(engine)

    def _close_session(self, error: BaseException | None = None) -> None:
        self.db.close_session()


def _prepare_at_first_connect(engine: Engine, data_path: Path) -> None:
    """Have the data folder made and checked before an adopted engine opens a file in it."""
    prepared = False

    def prepare(dialect: Dialect, record: object, arguments: list[Any], options: object) -> None:
        nonlocal prepared
        path = filesystem.path_of(os.fsdecode(arguments[0]))
        if prepared or path is None or data_path not in path.parents:
            return
        filesystem.prepare(data_path, Databases(data_path, (path,)))
        if path.parent != data_path:
            filesystem.prepare(path.parent)
        prepared = True

    # Before the listener of tune(), which makes the connection.
    event.listen(engine, "do_connect", prepare, insert=True)

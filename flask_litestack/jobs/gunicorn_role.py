"""One of gunicorn's own workers runs jobs: web and jobs are one process tree.

gunicorn starts it, replaces it when it dies, and on SIGTERM and SIGHUP ends it together with the
web workers. In a configuration file::

    from flask_litestack.jobs.gunicorn_role import add_worker as on_reload
    from flask_litestack.jobs.gunicorn_role import add_worker as on_starting
    worker_class = "flask_litestack.jobs.gunicorn_role.RoleWorker"
"""

from __future__ import annotations

import os
from typing import Any
from weakref import WeakSet

from flask import Flask
from gunicorn.workers.gthread import ThreadWorker

from .process import is_of_another, leave, quicken
from .worker import Progress, Worker

#: Seconds before gunicorn's own SIGKILL by which running jobs must have been put back.
MARGIN = 2.0

_MARK = "_litestack_runs_jobs"


def add_worker(server: Any) -> None:
    """Have gunicorn start one worker more, for jobs; its hook ``on_starting`` and ``on_reload``.

    Nothing happens if the app says ``LITESTACK_JOBS_IN_SERVER = False``.
    """
    app = server.app.wsgi() if server.cfg.preload_app else None
    if app is not None and not _wants_jobs(app):
        return
    server.cfg.set("workers", server.cfg.workers + 1)
    server.num_workers = server.cfg.workers
    setattr(server.cfg, _MARK, True)


class RoleWorker(ThreadWorker):  # type: ignore[misc]
    """A worker of gunicorn that serves requests, or runs jobs.

    The last one of each generation runs jobs (SIGTTOU ends the oldest first), and so does whoever
    is started when its generation has none.
    """

    _all: WeakSet[RoleWorker] = WeakSet()
    alive: bool
    runs_jobs: bool

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        others = [w for w in self._all if w.cfg is self.cfg and not _is_reaped(w)]
        self.runs_jobs = (
            getattr(self.cfg, _MARK, False)
            and not any(other.runs_jobs for other in others)
            and len(others) >= self.cfg.workers - 1
        )
        self._all.add(self)
        self._jobs: Worker | None = None

    def run(self) -> None:
        """Serve requests, or run jobs, until told to stop."""
        if not self.runs_jobs or not _wants_jobs(self.wsgi):
            super().run()
            return
        # A listening socket that nobody accepts from would let clients wait in vain.
        for listener in self.sockets:
            listener.close()
        app: Flask = self.wsgi
        litestack = app.extensions["litestack"]
        with app.app_context():
            settings = litestack.settings
        self._own_pid = os.getpid()
        self._grace = min(settings.jobs_grace, max(0.0, self.cfg.graceful_timeout - MARGIN))
        self._jobs = Worker(
            app,
            litestack.jobs,
            queues=settings.jobs_queues,
            threads=settings.jobs_threads,
            supervised=True,
            tick=self._tick,
        )
        if not self.alive:
            return
        quicken()
        self._jobs.run()
        if self._jobs.has_stuck_jobs:
            leave(0)

    def handle_exit(self, sig: int, frame: Any) -> None:
        """SIGTERM: finish what runs within the grace time."""
        if self._jobs is None:
            super().handle_exit(sig, frame)
            return
        if is_of_another(self._own_pid, sig):
            return
        self._jobs.stop(self._grace if self.alive else 1.0)
        self.alive = False

    def handle_quit(self, sig: int, frame: Any) -> None:
        """SIGQUIT and SIGINT: put back what runs."""
        if self._jobs is None:
            super().handle_quit(sig, frame)
            return
        if is_of_another(self._own_pid, sig):
            return
        self.alive = False
        self._jobs.stop(0.5)

    def _tick(self, progress: Progress) -> None:
        self.notify()
        if self.ppid != os.getppid() and self._jobs is not None:
            self._jobs.stop(self._grace)


def _wants_jobs(app: Any) -> bool:
    litestack = app.extensions.get("litestack") if isinstance(app, Flask) else None
    if litestack is None:
        return False
    with app.app_context():
        return bool(litestack.settings.jobs_in_server)


def _is_reaped(worker: RoleWorker) -> bool:
    """Whether gunicorn has noticed the worker's end: it closes its heartbeat file then."""
    return bool(worker.tmp._tmp.closed)

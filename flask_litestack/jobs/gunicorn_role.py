"""One of gunicorn's own workers runs jobs: web and jobs are one process tree.

gunicorn starts it, replaces it when it dies, and on SIGTERM and SIGHUP ends it together with the
web workers. In a configuration file::

    from flask_litestack.jobs.gunicorn_role import add_worker as on_reload
    from flask_litestack.jobs.gunicorn_role import add_worker as on_starting
    worker_class = "flask_litestack.jobs.gunicorn_role.RoleWorker"
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from functools import partial
from typing import Any
from weakref import WeakSet

from flask import Flask
from gunicorn.workers.gthread import ThreadWorker

from ..errors import LitestackError
from ..sqlite import driver
from .process import become_worker, leave
from .tally import Progress
from .worker import Worker

#: Seconds before gunicorn's own SIGKILL by which running jobs must have been put back.
MARGIN = 2.0

#: Seconds that a worker whose jobs cannot run waits before gunicorn may start the next one.
REST = 5.0

#: Milliseconds that a thread waits for the next request of a connection it has just answered.
PAUSE = 1

_MARK = "_litestack_runs_jobs"

#: What gunicorn's master sends to its workers.
_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1}


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
    server.handle_ttou = partial(_handle_ttou, server)
    server.manage_workers = partial(_manage_workers, server)


class RoleWorker(ThreadWorker):  # type: ignore[misc]
    """A worker of gunicorn that serves requests, or runs jobs.

    The second one of each generation runs jobs, and so does whoever is started beside others of
    which none does.
    """

    _all: WeakSet[RoleWorker] = WeakSet()
    _jobs: Worker | None = None
    _alive: bool
    _age: int
    runs_jobs = False

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        others = self._others()
        wanted = getattr(self.cfg, _MARK, False) and len(others) > 0
        self.runs_jobs = wanted and not any(other.runs_jobs for other in others)
        self._all.add(self)
        # gunicorn forks next. What it sends before the child has handlers of its own would only
        # be noted in the child's copy of the master: a SIGTERM lost, and 25 seconds to SIGKILL.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)

    def init_signals(self) -> None:
        """Set the handlers, and let come what has been sent meanwhile."""
        super().init_signals()
        _unblock()

    @property
    def age(self) -> float:
        """How many workers were started before. gunicorn ends those with the lowest age first.

        The one that runs jobs comes last of its generation.
        """
        if not self.runs_jobs:
            return self._age
        return max([self._age, *(other._age for other in self._others())]) + 0.5

    @age.setter
    def age(self, age: int) -> None:
        self._age = age

    @property
    def alive(self) -> bool:
        """Whether to go on. gunicorn's reloader, in a thread of its own, sets it to False."""
        return self._alive

    @alive.setter
    def alive(self, alive: bool) -> None:
        ends = not alive and self._alive
        self._alive = alive
        if ends and self._jobs is not None:
            self._jobs.stop(self._grace)

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
        self._grace = min(settings.jobs_grace, max(0.0, self.cfg.graceful_timeout - MARGIN))
        try:
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
            become_worker()
            self._jobs.run()
        except (LitestackError, OSError, driver.Error) as error:
            self.log.error("The job worker cannot run: %s", error)
            self._rest()
        except Exception:
            self.log.exception("The job worker has failed.")
            self._rest()
        if self._jobs is not None and self._jobs.has_stuck_jobs:
            leave(0)

    def handle(self, conn: Any) -> Any:
        """Serve a request of a connection, and those that follow without a pause.

        gunicorn gives a connection back to its main thread, which waits for the next request and
        gives that to another thread. Where it comes at once, as from a proxy with many visitors,
        these ways take a fifth of the time of a small response.
        """
        again = super().handle(conn)
        while again is True and self._is_asked_at_once(conn):
            again = super().handle(conn)
        return again

    def _is_asked_at_once(self, conn: Any) -> bool:
        """Wait for another request for a moment, unless another connection waits for a thread."""
        # Not by gunicorn's nr_conns: it counts down twice for a response that breaks off.
        if not self.alive or not self.tpool._work_queue.empty():
            return False
        poll = select.poll()
        poll.register(conn.sock, select.POLLIN)
        return bool(poll.poll(PAUSE))

    def is_parent_alive(self) -> bool:
        """Tell whether gunicorn's master lives. Without it the worker ends as after SIGTERM."""
        if super().is_parent_alive():
            return True
        self.alive = False
        return False

    def handle_exit(self, sig: int, frame: Any) -> None:
        """SIGTERM: finish what runs within the grace time. gunicorn may send it again and again."""
        if self._jobs is None:
            super().handle_exit(sig, frame)
        else:
            self.alive = False

    def handle_quit(self, sig: int, frame: Any) -> None:
        """SIGQUIT and SIGINT: put back what runs."""
        if self._jobs is None:
            super().handle_quit(sig, frame)
        else:
            self._jobs.stop(0.5)
            self.alive = False

    def _others(self) -> list[RoleWorker]:
        """Return the living workers of the same generation."""
        return [
            worker
            for worker in self._all
            if worker is not self and worker.cfg is self.cfg and not _is_reaped(worker)
        ]

    def _tick(self, progress: Progress) -> None:
        self.notify()
        if self._has_lost_its_parent():
            self.alive = False

    def _rest(self) -> None:
        """End later, with an error: gunicorn starts another worker at once, which fails again."""
        end = time.monotonic() + REST
        while self.alive and time.monotonic() < end and not self._has_lost_its_parent():
            self.notify()
            time.sleep(0.1)
        sys.exit(1)

    def _has_lost_its_parent(self) -> bool:
        return bool(self.ppid != os.getppid())


def _handle_ttou(server: Any) -> None:
    """Have one worker less. gunicorn stops at one, which could be the one that runs jobs."""
    if server.num_workers > 2:
        type(server).handle_ttou(server)


def _manage_workers(server: Any) -> None:
    """Have as many workers as there should be, and one of them for jobs.

    There may be enough without that: when it dies, and SIGTTIN and SIGTTOU come before gunicorn
    has noticed. With one more gunicorn ends the oldest of the others.
    """
    type(server).manage_workers(server)
    if not any(getattr(worker, "runs_jobs", True) for worker in server.WORKERS.values()):
        server.spawn_worker()
        type(server).manage_workers(server)


def _wants_jobs(app: Any) -> bool:
    litestack = app.extensions.get("litestack") if isinstance(app, Flask) else None
    if litestack is None:
        return False
    with app.app_context():
        return bool(litestack.settings.jobs_in_server)


def _is_reaped(worker: RoleWorker) -> bool:
    """Whether gunicorn has noticed the worker's end: it closes its heartbeat file then."""
    return bool(worker.tmp._tmp.closed)


def _unblock() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


os.register_at_fork(after_in_parent=_unblock)

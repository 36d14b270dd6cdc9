"""How gunicorn serves an app on one box: ``gunicorn -c python:flask_litestack.gunicorn app:app``.

Your own ``gunicorn.conf.py`` can begin with ``from flask_litestack.gunicorn import *`` and set
anything anew; so can the command line and ``GUNICORN_CMD_ARGS``. A hook of your own that takes
the place of one of ours should call it. Left to gunicorn's own defaults,
because they suit us: the address (``0.0.0.0:$PORT`` where PORT is set, else 127.0.0.1:8000), the
number of web workers (``WEB_CONCURRENCY``, else 1), and which proxies may say who the client is
(``FORWARDED_ALLOW_IPS``, else this machine alone).
"""

from __future__ import annotations

import gc
import os
import shlex
import signal
import sys
from typing import Any

__all__ = [
    "access_log_format",
    "accesslog",
    "control_socket_disable",
    "graceful_timeout",
    "keepalive",
    "on_reload",
    "on_starting",
    "post_worker_init",
    "pre_fork",
    "preload_app",
    "threads",
    "when_ready",
    "worker_class",
    "worker_exit",
    "worker_tmp_dir",
]

#: SQLite frees the interpreter while it works, so a few threads in one process beat processes:
#: they share its memory, its connections and its websockets. One worker more runs the jobs.
worker_class = "flask_litestack.jobs.gunicorn_role.RoleWorker"
threads = 4

#: Load the app once, before forking: its memory is shared and a broken app fails at the start.
#: Not with --reload, which would go on running the code that was loaded.
preload_app = not any(
    argument.startswith("--reload")
    for argument in [*sys.argv[1:], *shlex.split(os.environ.get("GUNICORN_CMD_ARGS", ""))]
)

#: Seconds that requests may take to end after SIGTERM. Give the process longer than this before
#: SIGKILL: kill_timeout = 30 in fly.toml, docker stop --timeout 30.
graceful_timeout = 25

#: Seconds that an idle connection is kept: longer than proxies keep theirs (usually 60), so that
#: they never send a request into a connection that is being closed.
keepalive = 65

#: Its thread would run in the master, which forks.
control_socket_disable = True

#: The heartbeat file of a worker, in memory: on a slow disk it could look dead.
worker_tmp_dir = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None

#: To standard output: time, client (as a ProxyFix sees it), request, status, bytes, milliseconds.
accesslog = "-"
access_log_format = '%(t)s %(h)s "%(r)s" %(s)s %(b)s %(M)sms'


def on_starting(server: Any) -> None:
    """Do what comes before the first request, or end with a sentence that says why not.

    And have one worker more, for jobs, unless the app says ``LITESTACK_JOBS_IN_SERVER = False``.
    """
    on_reload(server)
    if not server.cfg.preload_app:
        return  # each worker has an app of its own: see post_worker_init
    if server.cfg.reload:
        server.log.warning(
            "reload = True does nothing for code that is preloaded. Set preload_app = False, too."
        )
    reason = _start(server.app.wsgi(), server.log)
    if reason is not None:
        server.halt(reason=reason, exit_status=1)


def on_reload(server: Any) -> None:
    """Have the worker for jobs after SIGHUP, too. Preloaded code stays, and so does its data."""
    from .jobs.gunicorn_role import add_worker

    add_worker(server)


def when_ready(server: Any) -> None:
    """Say what is not fit for production."""
    app: Any = server.app.wsgi() if server.cfg.preload_app else None
    litestack = getattr(app, "extensions", {}).get("litestack")
    if litestack is None:
        return
    from .production import urgent

    with app.app_context():
        settings = litestack.settings
    if settings.production_warning:
        for finding in urgent(app, settings, server.cfg):
            server.log.warning("Not fit for production: %s Fix: %s", finding.what, finding.fix)


def pre_fork(server: object, worker: object) -> None:
    """Leave what the master has loaded out of the workers' garbage collections.

    Each collection writes into all objects that it looks at, so that the workers would soon have
    copies of their own of what they share.
    """
    gc.freeze()


def post_worker_init(worker: Any) -> None:
    """Tell websocket clients on SIGTERM itself that the worker ends; leave descriptors for them.

    Before :func:`worker_exit` gunicorn waits up to ``graceful_timeout`` for other connections.
    Without ``preload_app`` comes first what the master could not do before the first request.
    """
    if not worker.cfg.preload_app:
        reason = _start(worker.wsgi, worker.log)
        if reason is not None:
            worker.log.error("Reason: %s", reason)
            sys.exit(3)  # by which gunicorn knows that it would fail again, and ends
    from .cable import connections, say_goodbye

    finish: Any = signal.getsignal(signal.SIGTERM)

    def on_sigterm(sig: int, frame: object) -> None:
        say_goodbye()
        finish(sig, frame)

    signal.signal(signal.SIGTERM, on_sigterm)
    if hasattr(worker, "max_keepalived"):
        # A gthread worker dies where accept() finds no descriptor.
        worker.worker_connections = connections(worker.worker_connections)
        worker.max_keepalived = worker.worker_connections - worker.cfg.threads


def worker_exit(server: object, worker: object) -> None:
    """Tell the websocket clients of an ending worker that it goes away; they come back."""
    from .cable import stop_all

    stop_all()


def _start(app: Any, log: Any) -> str | None:
    """Do what comes before the first request; return why that is not possible, if it is not."""
    from flask import Flask

    from .errors import LitestackError
    from .start import start

    if not isinstance(app, Flask):
        log.warning(
            "gunicorn was given a %s, not a Flask app: nobody runs its jobs, or looks whether it "
            "is fit for production. Wrap app.wsgi_app, as in app.wsgi_app = ProxyFix(app.wsgi_app)"
            ", and give gunicorn the app itself.",
            type(app).__name__,
        )
        return None
    litestack = app.extensions.get("litestack")
    if litestack is None:
        return None
    try:
        with app.app_context():
            start(litestack)
    except LitestackError as error:
        return f"{type(error).__name__}: {error}"
    except Exception as error:
        log.exception("The app could not be made ready to serve.")
        return f"{type(error).__name__}: {error}"
    return None


def _say(kind: type[BaseException], error: BaseException, traceback: Any) -> None:
    """Print an error that ends gunicorn: ours says all there is to say in a sentence."""
    from .errors import LitestackError

    if isinstance(error, LitestackError):
        print(f"{kind.__name__}: {error}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)


# The app is loaded before any hook is called, and may use its data folder already.
sys.excepthook = _say

if os.getpid() == 1:
    # The first process of a container ignores a signal that it has no handler for, and gunicorn
    # sets its own only after it has loaded the app: until then, too, SIGTERM shall end it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))

"""What is wrong with an app, or with how it is served, for visitors from the internet.

``flask litestack doctor`` tells all of it; a warning at the start of gunicorn tells what cannot
wait (:func:`urgent`), unless ``LITESTACK_PRODUCTION_WARNING`` is False.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flask import Flask

from . import machine
from .cable import limits
from .config import Settings
from .errors import MachineError
from .process.openfiles import PROC, processes_using
from .serve import CONFIG
from .sqlite import health
from .sqlite.health import Finding, Severity

if TYPE_CHECKING:
    from .extension import Litestack

#: Bytes of a secret key below which it can be guessed; Flask's documentation makes keys of 32.
SECRET_BYTES = 16

#: Sockets of a process below which visitors with an open page will soon be refused.
FEW_CLIENTS = 250

#: What pyproject.toml asks for, and why: what the cable does with gunicorn's connections is
#: tested from this release on.
GUNICORN = (26, 1)

#: gunicorn's workers that cannot do what we need of them, and why.
UNFIT_WORKERS = {
    "sync": "has one thread: a slow request holds up all others, and a websocket for ever",
    "eventlet": "has one thread for all requests, which each query of SQLite holds up",
    "gevent": "has one thread for all requests, which each query of SQLite holds up",
    "tornado": "has one thread for all requests, which each query of SQLite holds up",
}


def urgent(app: Flask, settings: Settings, cfg: Any) -> Iterator[Finding]:
    """Look for what should keep an app from being served, before the first request.

    :param cfg: gunicorn's own configuration, a ``gunicorn.config.Config``.
    """
    found = [health.check_sqlite(), *health.check_mount(settings.data_path)]
    found += [*check_app(app), *check_server(cfg)]
    return (finding for finding in found if finding.severity is not Severity.OK)


def findings(app: Flask, litestack: Litestack) -> Iterator[Finding]:
    """Look at the app, at how gunicorn would serve it from here, and at what runs already."""
    yield from check_app(app)
    yield from _check_gunicorn()
    yield from check_sockets(litestack.settings)
    tasks = litestack.jobs.tasks.values()
    crons = sum(task.declaration.cron is not None for task in tasks)
    yield from check_fly(Path("fly.toml"), crons=crons)
    yield from check_machine(litestack.settings)


def check_app(app: Flask) -> Iterator[Finding]:
    """Look at debug mode and at the secret key."""
    if app.debug:
        yield Finding(
            "debug",
            Severity.ERROR,
            "Debug mode is on: a page with an error shows code and settings to everyone.",
            "Remove --debug, FLASK_DEBUG and app.debug from how the app is started.",
        )
    else:
        yield Finding("debug", Severity.OK, "Debug mode is off.")
    yield _check_secret_key(app.secret_key)


def _check_secret_key(key: str | bytes | None) -> Finding:
    if not key:
        what = "There is no SECRET_KEY, which only an app without sessions can do without."
        return Finding("secret key", Severity.OK, what)
    length = len(key.encode() if isinstance(key, str) else key)
    if length < SECRET_BYTES:
        return Finding(
            "secret key",
            Severity.ERROR,
            f"SECRET_KEY has {length} bytes: who guesses it can log in as anybody.",
            "Set it to what `python -c 'import secrets; print(secrets.token_hex())'` prints.",
        )
    return Finding("secret key", Severity.OK, f"SECRET_KEY has {length} bytes.")


def check_server(cfg: Any) -> Iterator[Finding]:
    """Look for settings of gunicorn that hurt an app with its data and its sockets on one box.

    :param cfg: a ``gunicorn.config.Config``.
    """
    worker = cfg.settings["worker_class"].get()
    name = worker if isinstance(worker, str) else worker.__name__
    kind = next((kind for kind in UNFIT_WORKERS if kind in name.lower()), None)
    if kind:
        yield _server(
            f"worker_class = {name!r} {UNFIT_WORKERS[kind]}.",
            "Begin gunicorn.conf.py with `from flask_litestack.gunicorn import *`, and leave "
            "worker_class as it is.",
        )
    elif cfg.threads < 2:
        yield _server(
            "threads = 1: a slow request holds up all others.",
            "Set threads = 4 in gunicorn.conf.py.",
        )
    if cfg.max_requests:
        yield _server(
            f"max_requests = {cfg.max_requests} ends a worker now and then, and with it every "
            "websocket that is open.",
            "Remove it from gunicorn.conf.py and GUNICORN_CMD_ARGS.",
        )


def _server(what: str, fix: str) -> Finding:
    return Finding("gunicorn", Severity.WARNING, what, fix)


def _check_gunicorn() -> Iterator[Finding]:
    """Look at gunicorn's release, and at the settings it would have if started from here."""
    try:
        version = importlib.metadata.version("gunicorn")
    except importlib.metadata.PackageNotFoundError:
        install = "Run `pip install 'flask-litestack[serve]'`."
        yield _server("gunicorn, which serves the app in production, is not installed.", install)
        return
    wanted = ".".join(map(str, GUNICORN))
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < GUNICORN:
        yield _server(
            f"gunicorn {version} is older than {wanted}: websockets may break under it.",
            "Run `pip install --upgrade gunicorn`.",
        )
    try:
        found = list(check_server(_configuration()))
    except (Exception, SystemExit) as error:  # whatever a user's own file may raise
        yield Finding(
            "gunicorn",
            Severity.ERROR,
            f"gunicorn's configuration cannot be read: {type(error).__name__}: {error}.",
            "Run `gunicorn --check-config` in this folder.",
        )
        return
    yield from found
    if not found:
        what = f"gunicorn {version}, with settings that fit."
        yield Finding("gunicorn", Severity.OK, what)


def _configuration() -> Any:
    """Read gunicorn's configuration as ``flask litestack serve`` in this folder would."""
    from gunicorn.app.base import Application

    class Reader(Application):  # type: ignore[misc]
        def do_load_config(self) -> None:
            self.load_default_config()
            parser = self.cfg.parser()
            given = vars(parser.parse_args(self.cfg.get_cmd_args_from_env()))
            own = Path("gunicorn.conf.py")
            self.load_config_from_file(given["config"] or (str(own) if own.is_file() else CONFIG))
            for key, value in given.items():
                if value is not None and key not in ("args", "config"):
                    self.cfg.set(key, value)

    return Reader().cfg


def check_sockets(settings: Settings) -> Iterator[Finding]:
    """Look whether the limit of open files leaves room for websockets.

    In the processes that serve right now; where there is none, in this one.
    """
    limit = min(_limits_of_servers(settings.data_path), default=limits.open_files_limit())
    if settings.cable_url is None or limit is None:
        return
    room = limits.room(limit)
    wanted = settings.cable_max_clients
    if room < (FEW_CLIENTS if wanted is None else wanted):
        asked = "" if wanted is None else f", not LITESTACK_CABLE_MAX_CLIENTS = {wanted}"
        yield Finding(
            "sockets",
            Severity.WARNING,
            f"A process may have {limit} files open, which lets {room} websockets in{asked}.",
            "Raise it: `ulimit -n`, LimitNOFILE= of systemd, or docker run --ulimit nofile=.",
        )
    else:
        what = f"A process may have {limit} files open: room for {room} websockets."
        yield Finding("sockets", Severity.OK, what)


def _limits_of_servers(data_path: Path) -> Iterator[int]:
    """Read how many files the processes that use the folder may open."""
    for process in processes_using(data_path):
        if process.pid == os.getpid():
            continue
        try:
            lines = (PROC / str(process.pid) / "limits").read_text()
        except OSError:
            continue  # it has ended, or is another user's
        found = re.search(r"^Max open files +\S+ +(\d+)", lines, re.MULTILINE)
        if found:
            yield int(found[1])


def check_fly(file: Path, *, crons: int) -> Iterator[Finding]:
    """Look whether Fly.io would run something beside the volume, or stop the machine with work."""
    import tomllib  # not in the server, which looks at less

    try:
        content = tomllib.loads(file.read_text())
    except (OSError, ValueError):
        return  # none here; one that is broken is told by fly itself
    found = list(_problems_on_fly(content, crons))
    yield from found
    if not found:
        what = "One machine runs all of the app, and is not stopped with work to do."
        yield Finding("fly.toml", Severity.OK, what)


def _problems_on_fly(content: Mapping[str, Any], crons: int) -> Iterator[Finding]:
    services = [content.get("http_service", {}), *content.get("services", [])]
    stops = {service.get("auto_stop_machines", "off") for service in services}
    if crons and not stops <= {"off", False}:
        yield Finding(
            "fly.toml",
            Severity.WARNING,
            f"auto_stop_machines stops the machine when nobody visits: {crons} tasks with cron= "
            "and all delayed jobs then wait for a visitor.",
            'Set auto_stop_machines = "off".',
        )
    groups = content.get("processes", {})
    if len(groups) > 1:
        yield Finding(
            "fly.toml",
            Severity.ERROR,
            f"[processes] has {', '.join(groups)}: each is a machine of its own, without the data "
            "of the others.",
            "Remove [processes]; the server runs the jobs, too.",
        )
    if "release_command" in content.get("deploy", {}):
        yield Finding(
            "fly.toml",
            Severity.WARNING,
            "release_command runs on a machine of its own, without the volume.",
            "Migrate in a function with @litestack.before_serving.",
        )


def check_machine(
    settings: Settings,
    *,
    resolve: Callable[[str], list[str]] = machine.resolve,
    port: int = machine.SSH_PORT,
) -> Iterator[Finding]:
    """Look whether this is the only machine of Fly.io that serves the app."""
    this = machine.this_machine()
    if this is None:
        return
    refused = settings.data_path / machine.REFUSED
    fix = (
        f"`fly machine list`, and `fly machine destroy --force` those but one ({this.id} is this)."
    )
    try:
        others = machine.running_beside(this, resolve=resolve, port=port)
    except MachineError as error:
        yield Finding("machine", Severity.WARNING, str(error), "Look again later.")
        return
    if refused.exists():
        what = f"Machine {this.id} does not serve: {refused.read_text()}"
        yield Finding("machine", Severity.ERROR, what, fix)
    elif others:
        what = f"Other machines run the app, with data of their own: {', '.join(others)}."
        yield Finding("machine", Severity.ERROR, what, fix)
    else:
        yield Finding("machine", Severity.OK, f"Machine {this.id} is the only one of the app.")

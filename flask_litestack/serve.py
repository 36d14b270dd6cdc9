"""Runs gunicorn for the app that the ``flask`` command would find."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from flask import Flask
from flask.cli import ScriptInfo

from .errors import ConfigError

CONFIG = "python:flask_litestack.gunicorn"

#: What gunicorn is told to load.
APP = "flask_litestack.serve:load_app()"


def serve(app: str | None, arguments: Sequence[str] = ()) -> NoReturn:
    """Replace this process by gunicorn, which keeps its id and gets its signals.

    :param app: the app as in ``flask --app``; None: wsgi.py or app.py in the current folder.
    :param arguments: of gunicorn, e.g. ``["--bind", ":8080"]``. A ``gunicorn.conf.py`` in the
        current folder or a ``--config`` takes the place of our configuration.
    :raises ConfigError: if gunicorn is not installed.
    """
    script = shutil.which("gunicorn", path=os.path.dirname(sys.executable))
    script = script or shutil.which("gunicorn")
    if script is None or find_spec("gunicorn") is None:
        raise ConfigError(
            "gunicorn is not installed here. Run `pip install 'flask-litestack[serve]'`."
        )
    if app is not None:
        os.environ["FLASK_APP"] = app
    sys.stdout.flush()
    # Not -m gunicorn: SIGUSR2 would then start gunicorn/__main__.py as a script, and the modules
    # beside it (http, uwsgi) would hide those of the same name.
    os.execv(
        sys.executable,
        [sys.executable, script, *_configuration(arguments), *arguments, APP],
    )


def load_app() -> Flask:
    """Load the app that FLASK_APP names, by the rules of the ``flask`` command."""
    return ScriptInfo(app_import_path=os.environ.get("FLASK_APP")).load_app()


def _configuration(arguments: Sequence[str]) -> list[str]:
    given = [*arguments, *shlex.split(os.environ.get("GUNICORN_CMD_ARGS", ""))]
    if any(argument.startswith(("-c", "--config")) for argument in given):
        return []
    return [] if Path("gunicorn.conf.py").is_file() else ["--config", CONFIG]

"""``flask litestack serve``."""

from __future__ import annotations

import click
from flask.cli import ScriptInfo

from ..errors import ConfigError


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("gunicorn_args", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def command(context: click.Context, gunicorn_args: tuple[str, ...]) -> None:
    """Serve the app with gunicorn, configured for one box.

    All arguments are gunicorn's, e.g. --bind :8080 --threads 8. The address is 0.0.0.0:$PORT
    where PORT is set, else 127.0.0.1:8000. A gunicorn.conf.py in the current folder is used
    instead of our configuration; begin it with "from flask_litestack.gunicorn import *".
    """
    from ..serve import serve

    info = context.ensure_object(ScriptInfo)
    if info.create_app is not None:
        raise ConfigError(
            "gunicorn cannot find the app of a custom `flask` script. Run `gunicorn --config"
            " python:flask_litestack.gunicorn 'your_module:create_app()'`."
        )
    serve(info.app_import_path, gunicorn_args)

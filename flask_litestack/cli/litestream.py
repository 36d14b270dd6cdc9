"""``flask litestack litestream``: a continuous copy of the database somewhere else."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import click

from .. import backups
from ..errors import BackupError, ConfigError
from ..extension import Litestack
from ..sqlite import backup
from ..sqlite.databases import logs
from ._app import DATA_PATH, load_litestack, restoring, with_litestack
from ._output import json_option, show
from .restore import refuse_if_used

FILE = "litestream.yml"


@click.group
def command() -> None:
    """Copy the database to LITESTACK_LITESTREAM_URL all the time, and get it back.

    Needs the program: pip install 'flask-litestack[backup]'.
    """


@command.command
@with_litestack
def config(litestack: Litestack) -> None:
    """Print the configuration that `run` uses, for a litestream of your own."""
    click.echo(_config(litestack), nl=False)


@command.command(context_settings={"ignore_unknown_options": True})
@click.argument("words", nargs=-1, required=True, type=click.UNPROCESSED, metavar="COMMAND...")
@click.pass_context
def run(context: click.Context, words: tuple[str, ...]) -> NoReturn:
    """Run COMMAND (gunicorn, say) with every commit copied; end with it.

    If there is no database yet but a copy of one, it is restored first: that is how an app starts
    on an empty volume after the old one was lost. SIGTERM ends COMMAND, then copies what is left.
    LITESTACK_DATA_PATH must be set in the environment.
    """
    folder = _folder_before_loading()
    found = _with_content(folder)
    litestack = load_litestack(context)
    own = litestack.db.path
    if own.parent.resolve() != folder:
        raise ConfigError(
            f"the app's database is {own}, and LITESTACK_DATA_PATH in the environment is {folder}:"
            " let the app have its database there."
        )
    program, path = _program(), _config_file(litestack)
    litestack.db.dispose()
    if own.name not in found:
        refuse_if_used(litestack.db.files(litestack.settings.data_path))
        for file in (own, *logs(own)):
            file.unlink(missing_ok=True)  # the app made it just now, by create_all() perhaps
    done = subprocess.run(
        [
            program,
            "restore",
            *("-config", path, "-if-db-not-exists", "-if-replica-exists"),
            *("-integrity-check", "quick", own),
        ]
    )
    if done.returncode:
        raise BackupError(
            f"the copy at {_url(litestack)} could not be restored (see above), and the app is not "
            f"started on an empty database in its place. Mend that, or start without `run`."
        )
    arguments = [program, "replicate", "-config", str(path), "-exec", shlex.join(words)]
    sys.stdout.flush()
    os.execv(program, arguments)


@command.command
@click.option("--timestamp", help="The moment to go back to, e.g. 2026-11-22T03:00:00Z.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@restoring
@with_litestack
def restore(litestack: Litestack, timestamp: str | None, yes: bool, as_json: bool) -> None:
    """Put the copy, as it was at a moment, in the place of the database.

    The app must be stopped. What was there before is kept.
    """
    program, path = _program(), _config_file(litestack)
    litestack.db.dispose()
    folder, own = litestack.settings.data_path, litestack.db.path
    databases = litestack.db.files(folder)
    refuse_if_used(databases)
    staged = folder / f".litestream{backup.PARTIAL}"
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(mode=0o700)
    try:
        moment = ["-timestamp", timestamp] if timestamp else []
        done = subprocess.run(
            [program, "restore", "-config", path, "-o", staged / own.name, *moment, own],
            stdout=sys.stderr,
        )
        if done.returncode:
            raise BackupError(f"the copy at {_url(litestack)} could not be restored; see above.")
        manifest = backup.seal(staged)
        if not yes:
            rows = sum(sum((file.rows or {}).values()) for file in manifest.files)
            click.confirm(f"Replace {own} by this copy of {rows} rows?", abort=True)
        _, before = backup.restore(
            staged, folder, backups.places(databases), expendable=backups.EXPENDABLE
        )
    finally:
        shutil.rmtree(staged)
    show({"restored": str(own), "moment": timestamp, "former_files": str(before)}, as_json)


def _folder_before_loading() -> Path:
    """The data folder, as far as it is known while the app cannot have made anything there."""
    path = os.environ.get(DATA_PATH)
    if not path:
        raise ConfigError(
            f"`run` needs {DATA_PATH} in the environment: it must see whether there is a database "
            "before the app is loaded, which may make an empty one."
        )
    return Path(path).resolve()


def _with_content(folder: Path) -> set[str]:
    """Name the files in a folder that are not empty."""
    if not folder.is_dir():
        return set()
    return {file.name for file in folder.iterdir() if file.is_file() and file.stat().st_size}


def _config(litestack: Litestack) -> str:
    """Write the databases one by one: a pattern would copy the cache too."""
    settings = litestack.settings
    own = litestack.db.path
    # A commit waits for the look at the log, and then for the copying of what was found there.
    look, copy = settings.litestream_interval * 0.9, settings.litestream_interval * 0.1
    # JSON is YAML too, so its quoting is.
    return (
        "# Written by flask litestack litestream; see https://litestream.io/reference/config/\n"
        "dbs:\n"
        f"  - path: {json.dumps(str(own))}\n"
        f"    monitor-interval: {look:g}s\n"
        "    replica:\n"
        f"      url: {json.dumps(f'{_url(litestack)}/{own.name}')}\n"
        f"      sync-interval: {copy:g}s\n"
    )


def _config_file(litestack: Litestack) -> Path:
    path = litestack.settings.data_path / FILE
    draft = path.with_name(f".{FILE}")
    draft.write_text(_config(litestack))
    draft.chmod(0o600)
    draft.replace(path)
    return path


def _url(litestack: Litestack) -> str:
    url = litestack.settings.litestream_url
    if url is None:
        raise ConfigError(
            "LITESTACK_LITESTREAM_URL is not set: where to copy the database to, for example "
            "s3://bucket/blog or file:///mnt/backup/blog."
        )
    return url.rstrip("/")


def _program() -> str:
    beside = Path(sys.executable).with_name("litestream")
    found: Any = str(beside) if beside.exists() else shutil.which("litestream")
    if found is None:
        raise ConfigError(
            "the program litestream is not installed: pip install 'flask-litestack[backup]'."
        )
    return str(found)

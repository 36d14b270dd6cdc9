"""``flask litestack dbconsole``."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import NoReturn

import click

from ..errors import StoreError
from ..extension import Litestack
from ..sqlite import driver
from ._app import with_litestack


@click.command
@click.option("--json", "as_json", is_flag=True, help="Print rows as JSON.")
@click.argument("sql", required=False)
@with_litestack
def command(litestack: Litestack, sql: str | None, as_json: bool) -> NoReturn:
    """Open an SQL console on the app's database, or run SQL and end.

    It is the sqlite3 shell where that is installed and free of SQLite's WAL-reset race, else a
    small console of our own.
    """
    path = litestack.db.path
    if not path.exists():
        raise StoreError(f"There is no database yet: {path} is made at first use.")
    shell = _shell()
    if shell is not None:
        options = ["-cmd", f".timeout {litestack.settings.busy_timeout * 1000:.0f}"]
        options += ["-cmd", "PRAGMA foreign_keys = ON", *(["-json"] if as_json else [])]
        program = [shell, *options, str(path)]
    else:
        options = ["-m", "flask_litestack.sqlite.console", *(["--json"] if as_json else [])]
        program = [sys.executable, *options, str(path)]
    # A program in the place of this one: this process may have the file open already, and
    # another SQLite library in it would drop the locks.
    sys.stdout.flush()
    os.execv(program[0], [*program, *([sql] if sql is not None else [])])


def _shell() -> str | None:
    """The path of a sqlite3 shell that is safe beside a running app."""
    shell = shutil.which("sqlite3")
    if shell is None:
        return None
    answer = subprocess.run([shell, "-version"], capture_output=True, text=True, check=False)
    try:
        version = tuple(map(int, answer.stdout.split()[0].split(".")))
    except (IndexError, ValueError):
        return None
    return None if driver.has_wal_reset_race(version) else shell

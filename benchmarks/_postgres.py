"""A PostgreSQL server of our own: a temporary cluster with default settings on a unix socket."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

#: PostgreSQL refuses to run as root; the first of these that exists runs it then.
USERS = ("postgres", "nobody")


class NotInstalled(Exception):
    """Raised when there is no PostgreSQL server, or no driver for it, on this machine."""


@contextlib.contextmanager
def server(folder: Path) -> Iterator[str]:
    """Run a server with its data in ``folder`` and yield SQLAlchemy's URL of a fresh database.

    :raises NotInstalled: if the server's programs or the ``psycopg`` package are missing.
    """
    programs = _programs()
    try:
        import psycopg  # noqa: F401
    except ImportError:
        raise NotInstalled("the psycopg package is not installed") from None
    user = _user()
    folder.mkdir()
    if user:
        shutil.chown(folder, user)
    data = folder / "data"
    run = {"user": user, "cwd": folder, "check": True, "stdout": subprocess.DEVNULL}
    locale = ["--encoding", "UTF8", "--locale", "C"]
    subprocess.run([programs / "initdb", "-D", data, "-A", "trust", "-U", "bench", *locale], **run)
    options = f"-c listen_addresses='' -c unix_socket_directories='{folder}'"
    control = [programs / "pg_ctl", "-D", data, "-w", "-l", folder / "log"]
    subprocess.run([*control, "-o", options, "start"], **run)
    try:
        yield f"postgresql+psycopg://bench@/postgres?host={folder}"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], **run)


def _programs() -> Path:
    if found := shutil.which("pg_ctl"):
        return Path(found).resolve().parent
    versions = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"), key=lambda path: int(path.parts[-3])
    )
    if not versions:
        raise NotInstalled("no PostgreSQL server is installed")
    return versions[-1].parent


def _user() -> str | None:
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in USERS if name in known)

"""How a command gets at the app's Litestack object, and as which user it runs."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import update_wrapper
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import click
from flask.cli import ScriptInfo

from .. import extension
from ..errors import ConfigError
from ..extension import Litestack
from ..sqlite import filesystem

DATA_PATH = "LITESTACK_DATA_PATH"

P = ParamSpec("P")
R = TypeVar("R")


def with_litestack(command: Callable[Concatenate[Litestack, P], Any]) -> Callable[P, Any]:
    """Give a command the app's Litestack object, in an app context.

    Root becomes the owner of the data folder: a file that root creates there (in a console of the
    server, say) could not be written by the app.
    """

    @click.pass_context
    def run(context: click.Context, /, *args: P.args, **options: P.kwargs) -> Any:
        return context.invoke(command, load_litestack(context), *args, **options)

    return update_wrapper(run, command)


def load_litestack(context: click.Context) -> Litestack:
    """Load the app, and enter its context for the rest of the command."""
    # The app may create files when it is loaded, so where the folder is known, before that.
    if path := os.environ.get(DATA_PATH):
        become_owner(Path(path))
    app = context.ensure_object(ScriptInfo).load_app()
    context.with_resource(app.app_context())
    litestack: Litestack | None = app.extensions.get(extension.NAME)
    if litestack is None:
        raise ConfigError(
            f"litestack.init_app(app) was not called for the app {app.name!r}; call it in your "
            "app factory (`flask litestack init` prints the lines)."
        )
    become_owner(litestack.settings.data_path)
    return litestack


def restoring(command: Callable[P, R]) -> Callable[P, R]:
    """Let a command use a data folder that an interrupted restore has left: it will mend that."""

    def run(*args: P.args, **options: P.kwargs) -> R:
        token = filesystem.is_restoring.set(True)
        try:
            return command(*args, **options)
        finally:
            filesystem.is_restoring.reset(token)

    return update_wrapper(run, command)


def become_owner(folder: Path) -> None:
    """Go on as the owner of the folder, if this is root and that is somebody else."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0 or not folder.exists():
        return
    owner = folder.stat()
    if owner.st_uid == 0 or not _can_run_python(owner.st_uid, owner.st_gid):
        return
    os.setgroups([])
    os.setgid(owner.st_gid)
    os.setuid(owner.st_uid)


def _can_run_python(uid: int, gid: int) -> bool:
    """Whether a user can read this Python and this package: one in /root is root's alone."""
    os.setegid(gid)
    os.seteuid(uid)
    try:
        return os.access(os.__file__, os.R_OK, effective_ids=True) and os.access(
            __file__, os.R_OK, effective_ids=True
        )
    finally:
        os.seteuid(0)
        os.setegid(0)

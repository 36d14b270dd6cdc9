"""``flask litestack ...``: each command is a module of this package, imported when it is used.

To add one, write ``cli/NAME.py`` with a click command (or group) called ``command`` in it, and
add NAME to :data:`COMMANDS`.
"""

from __future__ import annotations

from importlib import import_module

import click

from ..errors import LitestackError
from ..sqlite import filesystem

COMMANDS = (
    "backup",
    "cable",
    "cache",
    "dbconsole",
    "doctor",
    "init",
    "jobs",
    "litestream",
    "restore",
    "serve",
    "status",
    "verify",
    "worker",
)


class LitestackGroup(click.Group):
    """Finds commands by name, and turns our errors into one sentence and exit code 1."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = import_module(f"{__name__}.{name}").command
        return command

    def invoke(self, context: click.Context) -> object:
        try:
            return super().invoke(context)
        except PermissionError as error:
            raise click.ClickException(
                f"{filesystem.user()} may not use {error.filename}; run the command as root, or as"
                " the owner of the data folder."
            ) from error
        except Exception as error:
            # SQLAlchemy wraps the errors that come out of a statement.
            ours = getattr(error, "orig", error)
            if isinstance(ours, LitestackError):
                raise click.ClickException(str(ours)) from error
            raise


@click.group(cls=LitestackGroup)
def litestack() -> None:
    """One folder instead of servers: database, cache, jobs and websockets."""

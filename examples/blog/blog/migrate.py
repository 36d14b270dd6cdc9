"""Bring the database to the newest migration: at start, or by ``flask db``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click
from flask import current_app
from flask.cli import AppGroup
from sqlalchemy import inspect, text

from . import litestack

if TYPE_CHECKING:
    from alembic.config import Config

FOLDER = Path(__file__).parent / "migrations"

commands = AppGroup("db", short_help="Migrate the database.")


@commands.command()
@click.argument("revision", default="head")
def upgrade(revision: str) -> None:
    """Bring the database to REVISION, or to the newest migration."""
    from alembic import command

    command.upgrade(_config(), revision)


@commands.command()
@click.argument("revision", default="-1")
def downgrade(revision: str) -> None:
    """Take the database back to REVISION, or by one migration."""
    from alembic import command

    command.downgrade(_config(), revision)


@commands.command()
@click.option("-m", "--message", required=True, help="What it changes, for its file's name.")
def migrate(message: str) -> None:
    """Write a migration for what has changed in the models."""
    from alembic import command

    command.revision(_config(), message, autogenerate=True)


@litestack.before_serving
def run_pending() -> None:
    """Migrate if there is something to migrate.

    Alembic is loaded only then: it takes longer to import than the rest of a start together.
    A database written by a newer release is left as it is, so that a rollback has a working site.
    """
    current, known, newest = _current(), *_known_and_newest()
    if current == newest:
        return
    if current and not current <= known:
        current_app.logger.warning(
            "The database is at migration %s, which this release does not know: a newer "
            "release made it. Starting without a migration.",
            ", ".join(sorted(current - known)),
        )
        return
    from alembic import command

    command.upgrade(_config(), "head")
    current_app.logger.info("The database is at migration %s.", ", ".join(sorted(newest)))


def _current() -> set[str]:
    with litestack.db.engine.connect() as connection:
        if not inspect(connection).has_table("alembic_version"):
            return set()
        return set(connection.scalars(text("SELECT version_num FROM alembic_version")))


def _known_and_newest() -> tuple[set[str], set[str]]:
    """Return the ids of all migrations, and of those that no other one follows."""
    known, followed = set(), set()
    for path in FOLDER.glob("versions/*.py"):
        for name, ids in re.findall(r"^(revision|down_revision) = (.+)$", path.read_text(), re.M):
            (known if name == "revision" else followed).update(re.findall(r"\w+", ids))
    return known, known - followed


def _config() -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    config.set_main_option("file_template", "%%(year)d%%(month).2d%%(day).2d_%%(slug)s")
    return config

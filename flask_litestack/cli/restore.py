"""``flask litestack restore``."""

from __future__ import annotations

import os
from pathlib import Path

import click

from .. import backups
from ..errors import BackupError
from ..extension import Litestack
from ..process.openfiles import processes_using
from ..sqlite import backup
from ..sqlite.backup import Manifest
from ..sqlite.databases import Databases
from ._app import restoring, with_litestack
from ._output import json_option, show


@click.command
@click.argument("source", type=click.Path(path_type=Path, exists=True))
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option(
    "--hold-jobs",
    is_flag=True,
    help="Pause every queue with jobs or cron tasks: some may have run since the backup.",
)
@json_option
@restoring
@with_litestack
def command(litestack: Litestack, source: Path, yes: bool, hold_jobs: bool, as_json: bool) -> None:
    """Put a backup in the place of the app's files. The app must be stopped.

    The backup is checked first, and the former files are kept in a folder beside the new ones.
    After an interruption, run it again: until then the app does not start. With --hold-jobs, look
    at what waits (`flask litestack jobs list`), cancel what was done, and then
    `flask litestack jobs resume QUEUE`.
    """
    folder = litestack.settings.data_path
    databases = litestack.db.files(folder)
    held: list[str] = []

    def ready(manifest: Manifest, staged: Path) -> None:
        if not yes:
            click.confirm(
                f"Replace the files in {folder} by those of {manifest.created_at}?", abort=True
            )
        copy = staged / litestack.db.path.name
        if hold_jobs and copy.exists():
            held.extend(litestack.jobs.pause_all(copy))

    refuse_if_used(databases)
    litestack.db.dispose()
    manifest, before = backup.restore(
        source,
        folder,
        backups.places(databases),
        expendable=backups.EXPENDABLE,
        ready=ready,
    )
    show(
        {
            "restored": manifest.created_at,
            "files": [file.name for file in manifest.files],
            "former_files": str(before),
            "held_queues": held,
        },
        as_json,
    )


def refuse_if_used(databases: Databases) -> None:
    """Refuse while another process has a database of the app open.

    :raises BackupError: naming the processes.
    """
    for folder in databases.folders:
        users = [
            process
            for process in processes_using(folder)
            if process.pid != os.getpid()
            and any(folder / name in databases for name in process.files)
        ]
        if users:
            listed = "; ".join(f"{process.pid} ({process.command})" for process in users)
            raise BackupError(
                f"{folder} is in use by {listed}. Stop the app and its workers first."
            )

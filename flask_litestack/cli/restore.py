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
from ._app import with_litestack
from ._output import json_option, show


@click.command
@click.argument("source", type=click.Path(path_type=Path, exists=True))
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option(
    "--hold-jobs",
    is_flag=True,
    help="Pause every queue that has jobs: some may have run since the backup was made.",
)
@json_option
@with_litestack
def command(litestack: Litestack, source: Path, yes: bool, hold_jobs: bool, as_json: bool) -> None:
    """Put a backup in the place of the app's files. The app must be stopped.

    The backup is checked first, and the former files are kept in a folder beside the new ones.
    With --hold-jobs, look at what waits (`flask litestack jobs list`), cancel what was done, and
    then `flask litestack jobs resume QUEUE`.
    """
    folder = litestack.settings.data_path
    litestack.db.engine.dispose()
    refuse_if_used(folder)
    manifest = backup.verify(source)
    if not yes:
        click.confirm(
            f"Replace the files in {folder} by those of {manifest.created_at}?", abort=True
        )
    own = litestack.db.path
    manifest, before = backup.restore(source, folder, {own.name: own})
    for leftover in folder.glob(f"{backups.CACHE}*"):
        leftover.unlink()  # of another time than the restored rows
    show(
        {
            "restored": manifest.created_at,
            "files": [file.name for file in manifest.files],
            "former_files": str(before),
            "held_queues": list(litestack.jobs.pause_all()) if hold_jobs else [],
        },
        as_json,
    )


def refuse_if_used(folder: Path) -> None:
    """Refuse while another process has a database of the folder open.

    :raises BackupError: naming the processes.
    """
    users = [
        process
        for process in processes_using(folder)
        if process.pid != os.getpid() and any(".sqlite3" in name for name in process.files)
    ]
    if users:
        listed = "; ".join(f"{process.pid} ({process.command})" for process in users)
        raise BackupError(f"{folder} is in use by {listed}. Stop the app and its workers first.")

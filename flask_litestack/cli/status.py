"""``flask litestack status``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from .. import backups, up
from ..extension import Litestack
from ..process.openfiles import processes_using
from ..sqlite import driver, health
from ..sqlite.databases import Databases
from . import _reports
from ._app import with_litestack
from ._output import json_option, show


@click.command
@json_option
@with_litestack
@click.pass_context
def command(context: click.Context, litestack: Litestack, as_json: bool) -> None:
    """Show the files, the processes and the state of each part.

    Ends with exit code 1 if a part cannot be read.
    """
    path = litestack.settings.data_path
    databases = litestack.db.files(path)
    parts = _reports.status(litestack) if path.is_dir() else {}
    show(
        {
            "data_path": str(path),
            "sqlite": f"{driver.version} ({driver.name})",
            "files": _files(databases),
            "processes": _processes(databases),
            "backup": backups.last(path),
            "degraded": up.degraded(litestack),
            **parts,
        },
        as_json,
    )
    context.exit(1 if any("problem" in part for part in parts.values()) else 0)


def _files(databases: Databases) -> list[dict[str, Any]]:
    return [
        {"name": file.name, "size": health.size(file), "wal_size": health.size(Path(f"{file}-wal"))}
        for file in sorted(databases.existing())
    ]


def _processes(databases: Databases) -> list[dict[str, Any]]:
    existing = databases.existing()
    return [
        {
            "pid": process.pid,
            "stopped": process.stopped,
            "files": sorted(name for name in process.files if databases.folder / name in existing),
            "command": process.command,
        }
        for process in processes_using(databases.folder)
        if process.pid != os.getpid()
    ]

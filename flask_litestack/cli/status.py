"""``flask litestack status``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from .. import backups, up
from ..extension import Litestack
from ..process.openfiles import processes_using
from ..sqlite import driver, filesystem, health
from . import _reports
from ._app import with_litestack
from ._output import json_option, show


@click.command
@json_option
@with_litestack
def command(litestack: Litestack, as_json: bool) -> None:
    """Show the files, the processes and the state of each part."""
    path = litestack.settings.data_path
    show(
        {
            "data_path": str(path),
            "sqlite": f"{driver.version} ({driver.name})",
            "files": _files(path),
            "processes": _processes(path),
            "backup": backups.last(path),
            "degraded": up.degraded(litestack),
            **(_reports.status(litestack) if path.is_dir() else {}),
        },
        as_json,
    )


def _files(path: Path) -> list[dict[str, Any]]:
    if not path.is_dir():
        return []
    return [
        {"name": file.name, "size": health.size(file), "wal_size": health.size(Path(f"{file}-wal"))}
        for file in filesystem.database_files(path)
        if file.suffix == ".sqlite3"
    ]


def _processes(path: Path) -> list[dict[str, Any]]:
    return [
        {
            "pid": process.pid,
            "stopped": process.stopped,
            "files": sorted(name for name in process.files if name.endswith(".sqlite3")),
            "command": process.command,
        }
        for process in processes_using(path)
        if process.pid != os.getpid()
    ]

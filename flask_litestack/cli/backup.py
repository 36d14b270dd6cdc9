"""``flask litestack backup``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from .. import backups
from ..extension import Litestack
from ._app import with_litestack
from ._output import json_option, show


@click.command
@click.argument("destination", required=False, type=click.Path(path_type=Path, file_okay=False))
@click.option("--keep", type=click.IntRange(min=1), help="Leave the newest N backups there.")
@click.option("--compress", is_flag=True, help="Write one .tar.gz file in place of a folder.")
@json_option
@with_litestack
def command(
    litestack: Litestack,
    destination: Path | None,
    keep: int | None,
    compress: bool,
    as_json: bool,
) -> None:
    """Write a checked backup of every file, of one moment, while the app goes on.

    It becomes a new folder, named by its time, in DESTINATION (default: backups in the data
    folder). The cache is left out.
    """
    settings = litestack.settings
    with click.progressbar(length=1000, label="Copying", file=sys.stderr) as bar:
        advance: Callable[[int], None] = bar.update

        def progress(done: int, total: int) -> None:
            advance(done * 1000 // max(total, 1) - bar.pos)

        path, manifest = backups.backup(
            settings,
            litestack.db,
            destination,
            keep=keep,
            compress=compress,
            progress=progress,
        )
    has_key = any(file.name == backups.SECRET_KEY for file in manifest.files)
    report: dict[str, Any] = {
        "path": str(path),
        "created_at": manifest.created_at,
        "size": manifest.size,
        "files": [file.name for file in manifest.files],
        "secret_key": "inside: keep this backup as safe as the server" if has_key else "not inside",
    }
    if manifest.left_out:
        report["left_out"] = dict(manifest.left_out)
    show(report, as_json)

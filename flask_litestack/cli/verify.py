"""``flask litestack verify``."""

from __future__ import annotations

from pathlib import Path

import click

from ..sqlite import backup
from ._output import json_option, show


@click.command
@click.argument("source", type=click.Path(path_type=Path, exists=True))
@json_option
def command(source: Path, as_json: bool) -> None:
    """Check a backup: every file is there, unchanged and whole, and has its rows."""
    manifest = backup.verify(source)
    show(
        {
            "path": str(source),
            "created_at": manifest.created_at,
            "size": manifest.size,
            "files": [
                {"name": file.name, "size": file.size, "rows": sum((file.rows or {}).values())}
                for file in manifest.files
            ],
        },
        as_json,
    )

"""Which files of an app a backup holds, and the note of the last one."""

from __future__ import annotations

import json
from pathlib import Path

from .config import Settings
from .db import Database
from .errors import BackupError
from .sqlite import backup as sqlite_backup
from .sqlite.backup import Manifest, Progress

#: Left out: it may be deleted at any time, and after a restore it would be wrong.
CACHE = "cache.sqlite3"

#: The file in the data folder that remembers the last backup, for ``status``.
LAST = "last_backup.json"

SECRET_KEY = "secret_key"


def backup(
    settings: Settings,
    database: Database,
    destination: Path | None,
    *,
    keep: int | None,
    compress: bool,
    progress: Progress = lambda done, total: None,
) -> tuple[Path, Manifest]:
    """Write a checked backup of every file of the stack, and remember it.

    :param destination: the folder for it; None: ``backups`` in the data folder.
    :raises BackupError: if there is nothing to back up, or see :func:`.sqlite.backup.backup`.
    """
    databases = _databases(settings, database)
    if not databases:
        raise BackupError(f"there is no database in {settings.data_path} yet.")
    path, manifest = sqlite_backup.backup(
        databases,
        _others(settings),
        destination or settings.data_path / "backups",
        keep=keep,
        compress=compress,
        progress=progress,
        busy_timeout=settings.busy_timeout,
    )
    _remember(settings.data_path, path.absolute(), manifest.created_at)
    return path, manifest


def last(folder: Path) -> dict[str, str] | None:
    """Return the path and the time of the last backup that was verified."""
    try:
        found: dict[str, str] = json.loads((folder / LAST).read_text())
    except FileNotFoundError:
        return None
    return found


def _databases(settings: Settings, database: Database) -> list[Path]:
    """List the databases of the stack: the app's own first, wherever that is."""
    rest = (path for path in sorted(settings.data_path.glob("*.sqlite3")) if path.name != CACHE)
    return [path for path in dict.fromkeys([database.path, *rest]) if path.exists()]


def _others(settings: Settings) -> list[Path]:
    """List the files in the data folder that are no databases: the secret key, for one."""
    return [
        path
        for path in sorted(settings.data_path.iterdir())
        if path.is_file()
        and ".sqlite3" not in path.name
        and not path.name.startswith(".")
        and path.name != LAST
    ]


def _remember(folder: Path, backup: Path, created_at: str) -> None:
    draft = folder / f".{LAST}"
    draft.write_text(json.dumps({"path": str(backup), "created_at": created_at}) + "\n")
    draft.replace(folder / LAST)

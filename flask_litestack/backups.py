"""Which files of an app a backup holds, and the note of the last one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from .config import Settings
from .db import Database
from .errors import BackupError
from .sqlite import backup as sqlite_backup
from .sqlite.backup import Manifest, Progress
from .sqlite.health import Finding, Severity

#: Left out: it may be deleted at any time, and after a restore it would be wrong.
CACHE = "cache.sqlite3"

#: The file in the data folder that remembers the last backup, for ``status``.
LAST = "last_backup.json"

SECRET_KEY = "secret_key"

#: Seconds after which a backup is too old: a nightly one has failed.
OLD = 48 * 3600.0


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


def check(settings: Settings, database: Database) -> Iterator[Finding]:
    """Look at the age of the last backup, where there is something to lose."""
    if not _databases(settings, database):
        return
    if settings.litestream_url:
        what = f"Litestream copies the database to {settings.litestream_url}."
        yield Finding("backup", Severity.OK, what)
        return
    found = last(settings.data_path)
    fix = "Run `flask litestack backup`, and every night a task that calls litestack.backup()."
    if found is None:
        yield Finding("backup", Severity.WARNING, "There has never been a backup.", fix)
        return
    age = (datetime.now(UTC) - datetime.fromisoformat(found["created_at"])).total_seconds()
    what = f"The last backup is {age / 3600:.0f} hours old: {found['path']}."
    if age > OLD:
        yield Finding("backup", Severity.WARNING, what, fix)
    else:
        yield Finding("backup", Severity.OK, what)


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

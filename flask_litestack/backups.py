"""Which files of an app a backup holds, and the note of the last one."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from .config import Settings
from .db import Database
from .errors import BackupError
from .process.openfiles import processes_using
from .sqlite import filesystem
from .sqlite.databases import Databases
from .sqlite.health import Finding, Severity

if TYPE_CHECKING:
    from .sqlite.backup import Manifest, Progress

log = logging.getLogger("flask_litestack")

#: Left out: it may be deleted at any time, and after a restore it would be wrong.
CACHE = "cache.sqlite3"

#: What an app makes anew where it is missing: not worth a backup that fails.
EXPENDABLE = frozenset({CACHE, "cable.sqlite3", "metrics.sqlite3"})

#: The file in the data folder that remembers the last backup, for ``status``.
LAST = "last_backup.json"

SECRET_KEY = "secret_key"

#: Files of the data folder that would be wrong elsewhere or later: which machine serves it, locks,
#: notes, drafts, and databases that were put aside because they were damaged.
LEFT_OUT = re.compile(
    r"\..*|machine(\.[0-9a-f]+)?|.*\.lock|.*\.damaged-\d+|.*\.corrupt|litestream\.yml"
    rf"|{re.escape(LAST)}|{re.escape(filesystem.UNFINISHED)}"
)

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
    from .sqlite import backup as sqlite_backup  # not to serve: it brings tarfile

    databases = database.files(settings.data_path)
    found = _existing(databases)
    if not found:
        raise BackupError(f"there is no database in {settings.data_path} yet.")
    others = [p for p in _others(databases) if not sqlite_backup.is_backup_name(p.name)]
    path, manifest = sqlite_backup.backup(
        found,
        others,
        destination or settings.data_path / "backups",
        expendable=EXPENDABLE,
        keep=keep,
        compress=compress,
        progress=progress,
        busy_timeout=settings.busy_timeout,
    )
    for name, damage in manifest.left_out.items():
        log.warning(
            "%s is damaged, and not in the backup; the app makes a new one: %s", name, damage
        )
    _remember(settings.data_path, path.absolute(), manifest.created_at)
    return path, manifest


def last(folder: Path) -> dict[str, str] | None:
    """Return the path and the time of the last backup that was verified; None without a note."""
    try:
        found = json.loads((folder / LAST).read_text())
        return {"path": str(found["path"]), "created_at": _moment(found).isoformat()}
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        log.warning("%s is damaged; the next backup writes it anew.", folder / LAST)
        return None


def check(settings: Settings, database: Database) -> Iterator[Finding]:
    """Look at the age of the last backup, where there is something to lose."""
    if not _existing(database.files(settings.data_path)):
        return
    if settings.litestream_url:
        yield _check_litestream(database.path, settings.litestream_url)
        return
    found = last(settings.data_path)
    fix = "Run `flask litestack backup`, and every night a task that calls litestack.backup()."
    if found is None:
        yield Finding("backup", Severity.WARNING, "No backup is known of.", fix)
        return
    age = (datetime.now(UTC) - _moment(found)).total_seconds()
    what = f"The last backup is {age / 3600:.0f} hours old: {found['path']}."
    if age > OLD:
        yield Finding("backup", Severity.WARNING, what, fix)
    else:
        yield Finding("backup", Severity.OK, what)


def _check_litestream(path: Path, url: str) -> Finding:
    """Look for the process that copies: a setting alone copies nothing."""
    for process in processes_using(path.parent):
        program = os.path.basename(process.command.partition(" ")[0])
        if program == "litestream" and path.name in process.files:
            what = f"Litestream, process {process.pid}, copies {path.name} to {url}."
            return Finding("backup", Severity.OK, what)
    return Finding(
        "backup",
        Severity.WARNING,
        f"LITESTACK_LITESTREAM_URL is {url}, and no Litestream that this user can see has "
        f"{path.name} open: nothing is copied there.",
        "Start the app by `flask litestack litestream run -- flask litestack serve`.",
    )


def places(databases: Databases) -> dict[str, Path]:
    """Name where a restore puts what does not belong into the data folder."""
    return {path.name: path for path in databases.engines}


def _existing(databases: Databases) -> list[Path]:
    """List the databases to back up: the app's own first."""
    return [path for path in databases.existing() if path.name != CACHE]


def _others(databases: Databases) -> list[Path]:
    """List the files in the data folder that are no databases: the secret key, for one."""
    return [
        path
        for path in sorted(databases.folder.iterdir())
        if path.is_file() and path not in databases and not LEFT_OUT.fullmatch(path.name)
    ]


def _moment(note: Mapping[str, str]) -> datetime:
    return datetime.fromisoformat(note["created_at"])


def _remember(folder: Path, backup: Path, created_at: str) -> None:
    draft = folder / f".{LAST}"
    with open(draft, "w") as file:
        json.dump({"path": str(backup), "created_at": created_at}, file)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(folder / LAST)

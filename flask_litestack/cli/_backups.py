"""Which files of an app a backup holds, and where a restored one goes."""

from __future__ import annotations

import json
from pathlib import Path

from ..extension import Litestack

#: Left out: it may be deleted at any time, and after a restore it would be wrong.
CACHE = "cache.sqlite3"

#: The file in the data folder that remembers the last backup, for ``status``.
LAST = "last_backup.json"

SECRET_KEY = "secret_key"


def databases(litestack: Litestack) -> list[Path]:
    """List the databases of the stack: the app's own first, wherever that is."""
    folder = litestack.settings.data_path
    own = litestack.db.path
    rest = (path for path in sorted(folder.glob("*.sqlite3")) if path.name != CACHE)
    return [path for path in dict.fromkeys([own, *rest]) if path.exists()]


def others(litestack: Litestack) -> list[Path]:
    """List the files in the data folder that are no databases: the secret key, for one."""
    folder = litestack.settings.data_path
    return [
        path
        for path in sorted(folder.iterdir())
        if path.is_file()
        and ".sqlite3" not in path.name
        and not path.name.startswith(".")
        and path.name != LAST
    ]


def remember(folder: Path, backup: Path, created_at: str) -> None:
    """Note a verified backup, for ``status``."""
    draft = folder / f".{LAST}"
    draft.write_text(json.dumps({"path": str(backup), "created_at": created_at}) + "\n")
    draft.replace(folder / LAST)


def last(folder: Path) -> dict[str, str] | None:
    """Return the path and the time of the last backup that was verified."""
    try:
        found: dict[str, str] = json.loads((folder / LAST).read_text())
    except FileNotFoundError:
        return None
    return found

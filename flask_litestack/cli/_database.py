"""What ``status`` and ``doctor`` say about the app's database."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..config import Settings
from ..db import Database
from ..sqlite import health
from ..sqlite.file import file_at
from ..sqlite.health import Finding, Severity
from ..sqlite.tuning import raw


def status(db: Database, settings: Settings) -> dict[str, Any]:
    """Say where the database is and who writes to it right now."""
    if reason := db.why_no_file():
        return {"file": None, "note": reason}
    path = db.path
    holder = file_at(path).queue.holder() if path.exists() else None
    return {
        "file": str(path),
        "size": health.size(path),
        "wal_size": health.size(Path(f"{path}-wal")),
        "writer": asdict(holder) if holder else None,
    }


def findings(db: Database, settings: Settings) -> Iterator[Finding]:
    """Check the database file through the engine that the app uses."""
    if reason := db.why_no_file():
        yield Finding("database", Severity.WARNING, f"{reason[0].upper()}{reason[1:]}")
        return
    path = db.path
    if settings.data_path not in path.parents:
        yield Finding(
            "database",
            Severity.WARNING,
            f"The app's database {path} is not in the data folder {settings.data_path}: a volume"
            " that holds the one does not hold the other.",
            f"Set SQLALCHEMY_DATABASE_URI to sqlite:///{settings.data_path / path.name}.",
        )
    if not path.exists():
        yield Finding("database", Severity.OK, f"{path} is not there yet; it is made at first use.")
        return
    with db.engine.connect() as connection:
        yield from health.check_database(path, raw(connection), settings.synchronous)

"""Which files are the databases of an app, or belong to one."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

#: What SQLite keeps beside a database. A log that outlives its database is applied to the next
#: one of that name.
LOGS = ("-wal", "-shm", "-journal")

SUFFIX = ".sqlite3"


@dataclass(frozen=True)
class Databases:
    """All ``*.sqlite3`` of the data folder, and the files of the app's engines.

    The latter may lie elsewhere, and be called as their app likes it.
    """

    folder: Path
    engines: tuple[Path, ...] = ()

    @classmethod
    def of(cls, folder: Path, engines: Iterable[Path]) -> Databases:
        """Take the engines' files as they are spelled below ``folder``, where they lie there."""
        real = os.path.realpath(folder)

        def spelled(path: Path) -> Path:
            return folder / path.name if os.path.realpath(path.parent) == real else path

        return cls(folder, tuple(dict.fromkeys(map(spelled, engines))))

    @property
    def folders(self) -> list[Path]:
        """The folders with a database: the data folder first."""
        return list(dict.fromkeys([self.folder, *(path.parent for path in self.engines)]))

    def existing(self) -> list[Path]:
        """List the databases that exist, those of the engines first."""
        found = dict.fromkeys([*self.engines, *sorted(self.folder.glob(f"*{SUFFIX}"))])
        return [path for path in found if path.is_file()]

    def files(self) -> list[Path]:
        """List the databases and the logs that exist, sorted by folder and name."""
        found = (file for folder in self.folders if folder.is_dir() for file in folder.iterdir())
        return sorted(file for file in found if file in self)

    def __contains__(self, file: Path) -> bool:
        """Tell whether a path is that of a database or of its log, there or not."""
        log = next((log for log in LOGS if file.name.endswith(log)), "")
        database = file.with_name(file.name.removesuffix(log)) if log else file
        in_folder = database.parent == self.folder and database.suffix == SUFFIX
        return in_folder or database in self.engines


def logs(database: Path) -> list[Path]:
    """Name what SQLite may keep beside a database."""
    return [database.with_name(database.name + log) for log in LOGS]

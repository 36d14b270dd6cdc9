"""What can be wrong with a data folder, the disk under it and the SQLite that reads it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from ..errors import DataPathError, LockError
from ..process.openfiles import processes_using
from . import driver, filesystem
from .connection import Connection
from .databases import Databases
from .pragmas import AUTOCHECKPOINT, CACHE_KIB, WAL_LIMIT


class Severity(StrEnum):
    """How bad a finding is. Only an error makes ``doctor`` end with exit code 1."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    check: str
    """What was looked at, in a word or two; the same in every run."""
    severity: Severity
    what: str
    """What was found, a sentence."""
    fix: str = ""
    """What to do about it: a command, a setting. Empty where nothing is wrong."""


#: Free bytes below which writes are about to fail.
LITTLE_SPACE = 64 * 1024 * 1024

#: File systems that do not survive what a data folder must survive, and what that is.
FLEETING = {
    "tmpfs": "is in memory: everything is gone after a restart of the machine",
    "ramfs": "is in memory: everything is gone after a restart of the machine",
    "overlay": "is the container's own layer: everything is gone with the container",
    "aufs": "is the container's own layer: everything is gone with the container",
}

#: Fly.io gives each machine a new one of these, whatever file system is on it.
FLEETING_ROOT = "is the machine's own disk: everything is gone after the next deploy"

#: What Docker and Podman put into each container.
IN_CONTAINER = (Path("/.dockerenv"), Path("/run/.containerenv"))


def check_sqlite(version: tuple[int, ...] = driver.version_info) -> Finding:
    """Look for SQLite's WAL-reset race."""
    name = f"SQLite {'.'.join(map(str, version))} ({driver.name})"
    if not driver.has_wal_reset_race(version):
        return Finding("sqlite", Severity.OK, f"{name} is free of the WAL-reset race.")
    return Finding(
        "sqlite",
        Severity.WARNING,
        f"{name} can, very rarely, corrupt a database that several connections write"
        " (sqlite.org/wal.html, the WAL-reset bug).",
        "Use a platform with wheels of pysqlite3 (`pip install pysqlite3`), or a Python built with"
        " SQLite 3.51.3 or later.",
    )


def check_folder(databases: Databases) -> Iterator[Finding]:
    """Look at the data folder, and at the file system and the disk that it is on."""
    path = databases.folder
    try:
        if _is_there(path):
            filesystem.prepare(path, databases)
            what = f"{filesystem.describe(path)} can be written by {filesystem.user()}."
        else:
            what = f"{path} is not there yet; it is made at first use."
    except DataPathError as error:
        message, _, fix = str(error).partition(". ")
        yield Finding("data folder", Severity.ERROR, f"{message}.", fix)
    else:
        yield Finding("data folder", Severity.OK, what)
    yield from check_mount(path)
    if os.path.isdir(path) and os.access(path, os.R_OK | os.X_OK):
        yield check_space(databases)
        yield from _check_owners(databases)
        yield from _check_deleted(databases)


def check_mount(path: Path, environ: Mapping[str, str] = os.environ) -> Iterator[Finding]:
    """Look at the file system: whether it keeps what is written, with locks that work."""
    mount = filesystem.mount_of(path)
    if mount is None or filesystem.unsuitable(mount):
        return  # the latter was an error of prepare() already
    where = f"{path} lies on {mount.kind}, mounted at {mount.point}"
    on_fly = "FLY_MACHINE_ID" in environ
    own_disk = FLEETING_ROOT if on_fly and mount.point == Path("/") else None
    fleeting = own_disk or FLEETING.get(mount.kind)
    if fleeting:
        served_here = on_fly or any(file.exists() for file in IN_CONTAINER)
        yield Finding(
            "file system",
            Severity.ERROR if served_here else Severity.WARNING,
            f"{where}, which {fleeting}.",
            "Mount a volume, and set LITESTACK_DATA_PATH to a folder on it.",
        )
    elif mount.kind == "virtiofs" or mount.kind.startswith("fuse"):
        yield Finding(
            "file system",
            Severity.WARNING,
            f"{where}: whether SQLite's locks work there depends on the program behind it.",
            "Use a folder on a local disk, and never open the files from the other side.",
        )
    else:
        yield Finding("file system", Severity.OK, f"{where}.")


def check_space(databases: Databases) -> Finding:
    """Look at how much is free where the data folder is."""
    free = shutil.disk_usage(databases.folder).free
    used = sum(map(size, databases.files()))
    what = f"{human(free)} free, for {human(used)} of databases"
    if free < LITTLE_SPACE:
        fix = "Extend the volume or delete something; writes fail when nothing is left."
        return Finding("disk", Severity.ERROR, f"Only {what}.", fix)
    if free < used:
        fix = "Extend the volume: a backup or a VACUUM needs as much again."
        return Finding("disk", Severity.WARNING, f"Only {what}.", fix)
    return Finding("disk", Severity.OK, f"{what}.")


def check_database(path: Path, connection: Connection, synchronous: str) -> Iterator[Finding]:
    """Look at a database file, through a connection as the app makes them.

    :param synchronous: what the app asks for: NORMAL or FULL.
    """
    yield _check_pragmas(connection, synchronous)
    yield _check_wal(path)
    yield _check_writer(connection)


def _expected(synchronous: str) -> dict[str, int | str]:
    return {
        "journal_mode": "wal",
        "synchronous": 0 if synchronous == "OFF" else 1,  # for FULL, see sqlite/sync.py
        "foreign_keys": 1,
        "cache_size": -CACHE_KIB,
        "journal_size_limit": WAL_LIMIT,
        "wal_autocheckpoint": AUTOCHECKPOINT,
        "mmap_size": 0,
    }


def _check_pragmas(connection: Connection, synchronous: str) -> Finding:
    found = {
        name: connection.execute(f"PRAGMA {name}").fetchone()[0] for name in _expected(synchronous)
    }
    wrong = [
        f"{name} is {found[name]} instead of {wanted}"
        for name, wanted in _expected(synchronous).items()
        if found[name] != wanted
    ]
    if not wrong:
        what = ", ".join(f"{name} {found[name]}" for name in _expected(synchronous))
        return Finding("pragmas", Severity.OK, f"In effect: {what}.")
    return Finding(
        "pragmas",
        Severity.ERROR,
        f"Not in effect: {', '.join(wrong)}.",
        "Look for a PRAGMA in your code or in an event listener of the engine, and remove it.",
    )


def _check_wal(path: Path) -> Finding:
    wal = size(Path(f"{path}-wal"))
    if wal <= 4 * WAL_LIMIT:
        return Finding("wal", Severity.OK, f"{path.name}-wal has {human(wal)}.")
    users = [f"{process.pid} ({process.command})" for process in processes_using(path.parent)]
    return Finding(
        "wal",
        Severity.WARNING,
        f"{path.name}-wal has grown to {human(wal)}: a transaction that stays open, or a stopped"
        " process, keeps it from starting anew.",
        f"End long transactions. Processes with the file open: {', '.join(users) or 'none'}.",
    )


def _check_writer(connection: Connection) -> Finding:
    try:
        connection.begin_immediate()
    except LockError as error:
        message, _, fix = str(error).partition(". ")
        return Finding("write lock", Severity.ERROR, f"{message}.", fix)
    connection.rollback()
    return Finding("write lock", Severity.OK, "The write lock could be taken.")


def _check_owners(databases: Databases) -> Iterator[Finding]:
    path = databases.folder
    owner = path.stat().st_uid
    files = [*databases.files(), *sorted(path.glob("run/*"))]
    others = [file for file in files if _owner(file) not in (owner, None)]
    if others:
        listed = ", ".join(filesystem.describe(file) for file in others)
        yield Finding(
            "owners",
            Severity.ERROR,
            f"Not the owner of the folder owns {listed}.",
            f"Run `chown -R {owner} {path}` as root.",
        )
    elif files:
        yield Finding("owners", Severity.OK, "All files belong to the owner of the folder.")


def _check_deleted(databases: Databases) -> Iterator[Finding]:
    path = databases.folder
    for process in processes_using(path):
        names = sorted(name for name in process.deleted if path / name in databases)
        if names:
            yield Finding(
                "deleted files",
                Severity.ERROR,
                f"Process {process.pid} ({process.command}) works on {', '.join(names)}, which was"
                " deleted or replaced: what it writes is lost.",
                "Restart that process.",
            )


def _is_there(path: Path) -> bool:
    """Whether the folder exists, or is hidden in one that this user cannot enter."""
    try:
        return path.exists()
    except PermissionError:
        return True


def _owner(path: Path) -> int | None:
    """The uid of the owner; None for a file that has gone."""
    try:
        return path.stat().st_uid
    except FileNotFoundError:
        return None


def size(path: Path) -> int:
    """The bytes in a file; 0 where there is none."""
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


def human(count: float) -> str:
    """Write a number of bytes for people: "1.2 MB"."""
    units = ["bytes", "kB", "MB", "GB", "TB"]
    while count >= 1000 and len(units) > 1:
        count /= 1000
        units.pop(0)
    whole = units[0] == "bytes" or count >= 100
    return f"{count:.0f} {units[0]}" if whole else f"{count:.1f} {units[0]}"

"""Backups: one moment of every file, taken while the app writes, and checked before it counts.

Copying one database after the other mixes two moments. Here the write locks of all of them are
held for the fraction of a millisecond in which a read snapshot is pinned in each; the copies are
then made from these snapshots, while writers go on.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from ..errors import BackupError
from . import driver
from .connection import Connection, connect

MANIFEST = "manifest.json"
ARCHIVE = ".tar.gz"
PARTIAL = ".partial"

#: Pages copied between two calls of the progress function: 4 MiB.
STEP = 1024

_NAME = re.compile(r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d-\d{3}Z(\.tar\.gz)?")

#: Called with the bytes done and the bytes of all.
Progress = Callable[[int, int], object]


@dataclass(frozen=True)
class Copy:
    """One file of a backup. ``rows`` counts those of each table, None for other files."""

    name: str
    size: int
    sha256: str
    rows: Mapping[str, int] | None = None


@dataclass(frozen=True)
class Manifest:
    """What a backup holds."""

    created_at: str
    """In UTC, ISO 8601: the moment of all the files."""
    sqlite: str
    files: tuple[Copy, ...]

    @property
    def size(self) -> int:
        """The bytes of all files, uncompressed."""
        return sum(file.size for file in self.files)


def backup(
    databases: Sequence[Path],
    others: Sequence[Path],
    destination: Path,
    *,
    keep: int | None = None,
    compress: bool = False,
    progress: Progress = lambda done, total: None,
    busy_timeout: float = 5.0,
) -> tuple[Path, Manifest]:
    """Write a checked backup into a new folder, named by its time, of the folder ``destination``.

    It appears there under its name only when it is complete, checked and on the disk.

    :param databases: the files to take one moment of; they may be in use.
    :param others: files that are no databases, copied as they are.
    :param keep: how many backups to leave there, the newest; None leaves all.
    :param compress: write one .tar.gz file in place of a folder.
    :return: the new backup's path, and what is in it.
    :raises BackupError: if there is no room, the check fails, or another backup is running.
    :raises LockTimeout: if a file's write lock was not free within ``busy_timeout`` seconds.
    """
    destination.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _alone(destination):
        for left in destination.glob(f".*{PARTIAL}"):
            _remove(left)  # of a backup that was killed
        name = _name_of_now()
        partial = destination / f".{name}{PARTIAL}"
        partial.mkdir(mode=0o700)
        try:
            with _snapshots(databases, busy_timeout) as snapshots:
                moment = datetime.now(UTC)
                total = sum(map(_size, snapshots.values()))
                _check_room(destination, total * (2 if compress else 1))
                copies = _copy_databases(snapshots, partial, progress, total)
            copies += [_copy_file(path, partial) for path in others]
            manifest = Manifest(moment.isoformat(), driver.version, tuple(copies))
            _write_manifest(partial, manifest)
            result = _publish(partial, destination / name, compress)
        finally:
            _remove(partial)
        if keep is not None:
            for old in backups(destination)[:-keep] if keep > 0 else []:
                _remove(old)
    return result, manifest


def seal(folder: Path) -> Manifest:
    """Check the databases in a folder, and make it a backup by writing its manifest.

    :raises BackupError: if one is damaged.
    """
    copies = tuple(_seal(path, _check_database(path)) for path in sorted(folder.iterdir()))
    manifest = Manifest(datetime.now(UTC).isoformat(), driver.version, copies)
    _write_manifest(folder, manifest)
    return manifest


def backups(destination: Path) -> list[Path]:
    """List the complete backups in a folder, the oldest first."""
    if not destination.is_dir():
        return []
    return sorted(path for path in destination.iterdir() if _NAME.fullmatch(path.name))


def verify(source: Path) -> Manifest:
    """Check a backup: every file is there, unchanged, whole, and has its rows.

    :raises BackupError: naming what is wrong.
    """
    if source.is_dir():
        return _verify_folder(source)
    partial = source.parent / f".{source.name}.verify{PARTIAL}"
    try:
        return _verify_folder(_unpack(source, partial))
    finally:
        _remove(partial)


def restore(source: Path, folder: Path, targets: Mapping[str, Path]) -> tuple[Manifest, Path]:
    """Put a backup in the place of the files of a data folder that nobody uses.

    The backup is checked first. What was there before is kept in a folder beside the new files.
    Each file is replaced at once: a crash in the middle leaves the old file or the new one.

    :param targets: where a file goes that does not belong directly into ``folder``, by name.
    :return: what was restored, and the folder with the former files.
    :raises BackupError: if the backup is damaged, or a process still uses a file.
    """
    staged = folder / f".restore{PARTIAL}"
    _remove(staged)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        if source.is_dir():
            shutil.copytree(source, staged)
        else:
            _unpack(source, staged)
        manifest = _verify_folder(staged)
        places = {copy.name: targets.get(copy.name, folder / copy.name) for copy in manifest.files}
        before = folder / f"before-restore-{_name_of_now()}"
        before.mkdir(mode=0o700)
        try:
            for copy in manifest.files:
                if copy.rows is not None and places[copy.name].exists():
                    _take_out_of_use(places[copy.name], before)
        except BackupError:
            _remove(before)
            raise
        for name, place in places.items():
            if place.exists():
                os.link(place, before / name)  # it stays in place until it is replaced
            _sync(staged / name)
            os.replace(staged / name, place)
            _sync(place.parent)
        _sync(folder)
    finally:
        _remove(staged)
    return manifest, before


# -- taking one -----------------------------------------------------------------------------------


@contextmanager
def _alone(destination: Path) -> Iterator[None]:
    with open(destination / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BackupError(f"another backup into {destination} is running.") from None
        yield


@contextmanager
def _snapshots(databases: Sequence[Path], busy_timeout: float) -> Iterator[dict[str, Connection]]:
    """Pin the same moment of every database."""
    names = [path.name for path in databases]
    if len(set(names)) < len(names):
        raise BackupError(f"two of the databases have the same name: {', '.join(names)}.")
    with ExitStack() as stack:

        def opened(path: Path) -> Connection:
            return stack.enter_context(closing(connect(path, busy_timeout=busy_timeout)))

        readers = {path.name: opened(path) for path in databases}
        writers = [opened(path) for path in databases]
        try:
            for writer in writers:
                writer.begin_immediate()
            for reader in readers.values():
                reader.begin_read()
        finally:
            for writer in writers:
                writer.rollback()
        yield readers


def _size(connection: Connection) -> int:
    pages: int = connection.execute("PRAGMA page_count").fetchone()[0]
    size: int = connection.execute("PRAGMA page_size").fetchone()[0]
    return pages * size


def _check_room(destination: Path, needed: int) -> None:
    free = shutil.disk_usage(destination).free
    if free < needed * 1.05:
        raise BackupError(
            f"a backup needs {needed / 2**20:,.0f} MiB, and {destination} has only "
            f"{free / 2**20:,.0f} MiB left. Make room, or name a folder on another disk."
        )


def _copy_databases(
    snapshots: Mapping[str, Connection], folder: Path, progress: Progress, total: int
) -> list[Copy]:
    copies = []
    before = 0
    for name, source in snapshots.items():
        size = _size(source)

        def report(status: int, remaining: int, pages: int, b: int = before, s: int = size) -> None:
            progress(b + s * (pages - remaining) // max(pages, 1), total)

        with closing(driver.module.connect(folder / name, isolation_level=None)) as target:
            # The snapshot is pinned, so copying in steps never starts over.
            source.backup(target, pages=STEP, progress=report)
            target.execute("PRAGMA journal_mode = DELETE")  # one file, without a log beside it
        before += size
        copies.append(_seal(folder / name, _check_database(folder / name)))
    return copies


def _copy_file(path: Path, folder: Path) -> Copy:
    shutil.copyfile(path, folder / path.name)
    return _seal(folder / path.name)


def _check_database(path: Path) -> dict[str, int]:
    """Count the rows of each table of a database that is whole."""
    uri = f"{path.absolute().as_uri()}?mode=ro"
    with closing(driver.module.connect(uri, uri=True, isolation_level=None)) as connection:
        try:
            (found,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
            if found != "ok":
                raise BackupError(f"{path.name} is damaged: {found}.")
            names = connection.execute(
                "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
            ).fetchall()
            return {name: _count(connection, name) for (name,) in names}
        except driver.DatabaseError as error:
            raise BackupError(f"{path.name} is damaged: {error}.") from error


def _count(connection: driver.Connection, table: str) -> int:
    quoted = table.replace('"', '""')
    count: int = connection.execute(f'SELECT count(*) FROM "{quoted}"').fetchone()[0]
    return count


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    (folder / MANIFEST).write_text(json.dumps(asdict(manifest), indent=2) + "\n")


def _seal(path: Path, rows: Mapping[str, int] | None = None) -> Copy:
    path.chmod(0o600)
    return Copy(path.name, path.stat().st_size, _sha256(path), rows)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _publish(partial: Path, final: Path, compress: bool) -> Path:
    for path in partial.iterdir():
        _sync(path)
    if compress:
        archive = final.parent / f".{final.name}{ARCHIVE}{PARTIAL}"
        with tarfile.open(archive, "w:gz", compresslevel=6) as tar:
            tar.add(partial, arcname=final.name)
        archive.chmod(0o600)
        partial, final = archive, final.with_name(final.name + ARCHIVE)
    _sync(partial)
    partial.rename(final)
    _sync(final.parent)
    return final


def _name_of_now() -> str:
    now = datetime.now(UTC)
    return f"{now:%Y-%m-%dT%H-%M-%S}-{now.microsecond // 1000:03}Z"


# -- reading one ----------------------------------------------------------------------------------


def _verify_folder(folder: Path) -> Manifest:
    try:
        data = json.loads((folder / MANIFEST).read_text())
        files = tuple(Copy(**file) for file in data.pop("files"))
        manifest = Manifest(**data, files=files)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise BackupError(f"{folder} is not a backup: no usable {MANIFEST} in it.") from error
    for copy in manifest.files:
        path = folder / copy.name
        if not path.is_file():
            raise BackupError(f"the backup is incomplete: {copy.name} is missing.")
        if _sha256(path) != copy.sha256:
            raise BackupError(f"{copy.name} was changed or damaged since the backup was made.")
        if copy.rows is not None and _check_database(path) != copy.rows:
            raise BackupError(f"{copy.name} does not have the rows that the backup says.")
    return manifest


def _unpack(archive: Path, folder: Path) -> Path:
    _remove(folder)
    folder.mkdir(mode=0o700)
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                if member.isfile():
                    member.name = os.path.basename(member.name)
                    tar.extract(member, folder, filter="data")
    except (OSError, EOFError, tarfile.TarError) as error:
        _remove(folder)
        raise BackupError(f"{archive} cannot be read as a backup: {error}.") from error
    return folder


def _take_out_of_use(path: Path, before: Path) -> None:
    """Empty the log of a database into it and remove the log, which needs it to oneself."""
    log = path.with_name(f"{path.name}-wal")
    kept = before / log.name
    if log.exists():
        os.link(log, kept)
    with closing(driver.module.connect(path, timeout=0, isolation_level=None)) as connection:
        try:
            connection.execute("PRAGMA journal_mode = DELETE").fetchone()
            kept.unlink(missing_ok=True)  # all of it is in the database now
        except driver.OperationalError as error:
            raise BackupError(
                f"{path} is in use ({error}). Stop the app and its workers first."
            ) from error
        except driver.DatabaseError:
            pass  # not readable as a database: the reason, perhaps, for this restore
    for leftover in (log, path.with_name(f"{path.name}-shm")):
        leftover.unlink(missing_ok=True)  # it must not be applied to the restored file


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

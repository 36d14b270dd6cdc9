"""Backups: one moment of every file, taken while the app writes, and checked before it counts.

Copying one database after the other mixes two moments. Here the write locks of all of them are
held for the fraction of a millisecond in which a read snapshot is pinned in each; the copies are
then made from these snapshots, while writers go on.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import itertools
import json
import os
import re
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from ..errors import BackupError, StoreError
from . import driver, filesystem
from .connection import Connection, connect
from .databases import logs

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
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Databases that were damaged, and that the app can do without: what was wrong with each."""

    @property
    def size(self) -> int:
        """The bytes of all files, uncompressed."""
        return sum(file.size for file in self.files)


def backup(
    databases: Sequence[Path],
    others: Sequence[Path],
    destination: Path,
    *,
    expendable: Collection[str] = (),
    keep: int | None = None,
    compress: bool = False,
    progress: Progress = lambda done, total: None,
    busy_timeout: float = 5.0,
) -> tuple[Path, Manifest]:
    """Write a checked backup into a new folder, named by its time, of the folder ``destination``.

    It appears there under its name only when it is complete, checked and on the disk.

    :param databases: the files to take one moment of; they may be in use.
    :param others: files that are no databases, copied as they are.
    :param expendable: names of databases that are left out if they are damaged.
    :param keep: how many backups to leave there, the newest; None leaves all.
    :param compress: write one .tar.gz file in place of a folder.
    :return: the new backup's path, and what is in it.
    :raises BackupError: if there is no room, the check fails, or another backup is running.
    :raises LockTimeout: if a file's write lock was not free within ``busy_timeout`` seconds.
    """
    _refuse_same_names([*databases, *others])
    destination.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _alone(destination):
        _remove_killed(destination)
        name = _name_of_now()
        partial = destination / f".{name}{PARTIAL}"
        archive = destination / f".{name}{ARCHIVE}{PARTIAL}"
        try:
            with _saying_what_is_full(destination):
                partial.mkdir(mode=0o700)
                damaged = _Damaged(expendable)
                with _snapshots(databases, busy_timeout, damaged) as snapshots:
                    moment = datetime.now(UTC)
                    total = sum(map(_size, snapshots.values()))
                    needed = total + sum(path.stat().st_size for path in others)
                    _check_room("a backup", destination, needed * (2 if compress else 1))
                    _copy_databases(snapshots, partial, damaged, progress, total)
                # Checked when no snapshot keeps the logs from starting anew any more.
                copies = _check_copies(databases, partial, damaged)
                copies += [_copy_file(path, partial) for path in others]
                manifest = Manifest(
                    moment.isoformat(), driver.version, tuple(copies), damaged.found
                )
                _write_manifest(partial, manifest)
                if compress:
                    _compress(partial, archive, name)
                    result = _publish(archive, destination / f"{name}{ARCHIVE}")
                else:
                    result = _publish(partial, destination / name)
        finally:
            _remove(partial)
            _remove(archive)
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
    return sorted(path for path in destination.iterdir() if is_backup_name(path.name))


def is_backup_name(name: str) -> bool:
    """Tell whether a file or folder is called as backups are."""
    return _NAME.fullmatch(name) is not None


def verify(source: Path) -> Manifest:
    """Check a backup: every file is there, unchanged, whole, and has its rows.

    :raises BackupError: naming what is wrong.
    """
    if source.is_dir():
        return _verify_folder(source)
    # Elsewhere than beside it, where there may be no room, no right to write, and a backup running.
    with TemporaryDirectory(prefix="flask-litestack-verify-") as temporary:
        return _verify_folder(_unpack(source, Path(temporary) / "backup"))


def restore(
    source: Path,
    folder: Path,
    targets: Mapping[str, Path],
    *,
    expendable: Collection[str] = (),
    ready: Callable[[Manifest, Path], object] = lambda manifest, staged: None,
) -> tuple[Manifest, Path]:
    """Put a backup in the place of the files of a data folder that nobody uses.

    The backup is checked first. What was there before is kept in a folder beside the new files.
    If this is interrupted once files are replaced, :func:`.filesystem.prepare` refuses the data
    folder, a mix of two moments, until it is done again.

    :param targets: where a file goes that does not belong directly into ``folder``, by name.
    :param expendable: names of databases that are deleted if the backup has none of that name.
    :param ready: called with what is about to be put in place, and the folder in which it lies:
        the last moment to change it there, or to raise.
    :return: what was restored, and the folder with the former files.
    :raises BackupError: if the backup is damaged, there is no room, or a process uses a file.
    """
    staged = folder / f".restore{PARTIAL}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _remove(staged)
    try:
        with _saying_what_is_full(folder):
            _check_room("the restore", folder, _unpacked_size(source))
            _stage(source, staged)
            manifest = _verify_folder(staged)
            ready(manifest, staged)
            before = _swap(staged, manifest, folder, targets, expendable, source)
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


def _refuse_same_names(paths: Sequence[Path]) -> None:
    names = Counter([MANIFEST, *(path.name for path in paths)])
    for name, count in names.items():
        if count > 1:
            listed = ", ".join(str(path) for path in paths if path.name == name)
            raise BackupError(f"two files of the backup would be called {name}: rename {listed}.")


def _remove_killed(destination: Path) -> None:
    """Remove what backups that were killed have left."""
    for left in destination.glob(f".*{PARTIAL}"):
        if is_backup_name(left.name[1:].removesuffix(PARTIAL)):
            with suppress(PermissionError):  # root's, perhaps: it takes room, and no more
                _remove(left)


@contextmanager
def _saying_what_is_full(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, driver.Error) as error:
        no_room = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        if not no_room and driver.error_code(error) != driver.FULL:
            raise
        raise BackupError(
            f"the disk of {folder} has no room left ({error}). Make room, and try again."
        ) from error


class _Damaged:
    """What was found damaged, as far as the app can do without it."""

    def __init__(self, expendable: Collection[str]) -> None:
        self.found: dict[str, str] = {}
        self._expendable = expendable

    @contextmanager
    def leaves_out(self, name: str) -> Iterator[None]:
        """Note that ``name`` is damaged if it turns out to be so, or raise if it is needed."""
        try:
            yield
        except (StoreError, driver.DatabaseError) as error:
            code = driver.error_code(error)
            if isinstance(error, driver.Error) and code not in (driver.CORRUPT, driver.NOTADB):
                raise
            if name in self._expendable:
                self.found[name] = str(error)
            elif isinstance(error, BackupError):
                raise
            else:
                raise BackupError(f"{name} is damaged: {error}.") from error


@contextmanager
def _snapshots(
    databases: Sequence[Path], busy_timeout: float, damaged: _Damaged
) -> Iterator[dict[str, Connection]]:
    """Pin the same moment of every database, but for the damaged ones."""
    with ExitStack() as stack:

        def opened(path: Path) -> Connection:
            return stack.enter_context(closing(connect(path, busy_timeout=busy_timeout)))

        readers, writers = {}, {}
        for path in databases:
            with damaged.leaves_out(path.name):
                readers[path.name], writers[path.name] = opened(path), opened(path)
        try:
            for name, writer in writers.items():
                with damaged.leaves_out(name):
                    writer.begin_immediate()
            for name, reader in readers.items():
                with damaged.leaves_out(name):
                    reader.begin_read()
        finally:
            for writer in writers.values():
                writer.rollback()
        yield {name: reader for name, reader in readers.items() if name not in damaged.found}


def _size(connection: Connection) -> int:
    pages: int = connection.execute("PRAGMA page_count").fetchone()[0]
    size: int = connection.execute("PRAGMA page_size").fetchone()[0]
    return pages * size


def _check_room(what: str, folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed * 1.05:
        raise BackupError(
            f"{what} needs {needed / 2**20:,.0f} MiB, and the disk of {folder} has only "
            f"{free / 2**20:,.0f} MiB left. Make room, or use a folder on another disk."
        )


def _copy_databases(
    snapshots: Mapping[str, Connection],
    folder: Path,
    damaged: _Damaged,
    progress: Progress,
    total: int,
) -> None:
    """Copy the databases, and end the snapshot of each as soon as its copy is made."""
    before = 0
    for name, source in snapshots.items():
        size = _size(source)

        def report(status: int, remaining: int, pages: int, b: int = before, s: int = size) -> None:
            progress(b + s * (pages - remaining) // max(pages, 1), total)

        with (
            damaged.leaves_out(name),
            closing(driver.module.connect(folder / name, isolation_level=None)) as target,
        ):
            # The snapshot is pinned, so copying in steps never starts over.
            source.backup(target, pages=STEP, progress=report)
            target.execute("PRAGMA journal_mode = DELETE")  # one file, without a log beside it
        source.close()
        before += size


def _check_copies(databases: Sequence[Path], folder: Path, damaged: _Damaged) -> list[Copy]:
    copies = []
    for name in [path.name for path in databases if path.name not in damaged.found]:
        with damaged.leaves_out(name):
            copies.append(_seal(folder / name, _check_database(folder / name)))
    for name in damaged.found:
        for file in (folder / name, *logs(folder / name)):
            _remove(file)
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


def _compress(folder: Path, archive: Path, name: str) -> None:
    with tarfile.open(archive, "w:gz", compresslevel=6) as tar:
        tar.add(folder, arcname=name)
    archive.chmod(0o600)


def _publish(partial: Path, final: Path) -> Path:
    """Bring it to the disk, and only then give it its name."""
    for path in partial.iterdir() if partial.is_dir() else []:
        _sync(path)
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


@contextmanager
def _reading_archive(archive: Path) -> Iterator[tarfile.TarFile]:
    try:
        with tarfile.open(archive, "r:gz") as tar:
            yield tar
    except (OSError, EOFError, tarfile.TarError) as error:
        raise BackupError(f"{archive} cannot be read as a backup: {error}.") from error


def _unpack(archive: Path, folder: Path) -> Path:
    folder.mkdir(mode=0o700)
    with _reading_archive(archive) as tar, _saying_what_is_full(folder):
        for member in tar:
            if member.isfile():
                member.name = os.path.basename(member.name)
                tar.extract(member, folder, filter="data")
    return folder


def _unpacked_size(source: Path) -> int:
    if source.is_dir():
        return sum(path.stat().st_size for path in source.iterdir() if path.is_file())
    with _reading_archive(source) as tar:
        return sum(member.size for member in tar)


def _stage(source: Path, staged: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, staged)
        staged.chmod(0o700)
    else:
        _unpack(source, staged)


def _check_places(places: Iterable[Path], folder: Path) -> None:
    """Make sure that a file can be replaced in one step, before the first one is."""
    device = folder.stat().st_dev
    for place in places:
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if place.parent.stat().st_dev != device:
            raise BackupError(
                f"{place} is on another disk than the data folder {folder}, so it cannot be "
                "replaced in one step with the rest. Let the app have its database in the data "
                "folder, and restore again."
            )


def _swap(
    staged: Path,
    manifest: Manifest,
    folder: Path,
    targets: Mapping[str, Path],
    expendable: Collection[str],
    source: Path,
) -> Path:
    """Put the staged files into their places; return the folder with the former ones."""
    places = {copy.name: targets.get(copy.name, folder / copy.name) for copy in manifest.files}
    _check_places(places.values(), folder)
    for name in places:
        (staged / name).chmod(0o600)  # whatever it was on the medium of the backup
        _sync(staged / name)
    databases = [places[copy.name] for copy in manifest.files if copy.rows is not None]
    before = folder / f"before-restore-{_name_of_now()}"
    mark = folder / filesystem.UNFINISHED
    again = mark.exists()
    _mark_unfinished(mark, f"{source}, with the former files in {before}")
    try:
        _take_out_of_use(databases, before)
    except BackupError:
        _remove(before)
        if not again:
            mark.unlink()
        raise
    _keep(places.values(), before)
    for log in itertools.chain(*map(logs, databases)):
        log.unlink(missing_ok=True)  # else it would be applied to the restored file
    for name in set(expendable) - places.keys():
        for file in (folder / name, *logs(folder / name)):
            file.unlink(missing_ok=True)
    for name, place in places.items():
        os.replace(staged / name, place)
        _sync(place.parent)
    _sync(folder)
    mark.unlink()
    _sync(folder)
    return before


def _mark_unfinished(mark: Path, what: str) -> None:
    """Keep apps from starting, from here to the end of the restore."""
    if not mark.exists():  # else it names the former files, which were set aside that time
        mark.write_text(what + "\n")
        _sync(mark)
        _sync(mark.parent)


def _take_out_of_use(databases: Sequence[Path], before: Path) -> None:
    """Empty the logs into the databases, which needs them to oneself.

    A log that cannot be emptied, or has lost its database, is kept in ``before``.
    """
    before.mkdir(mode=0o700)
    for path in databases:
        for log in logs(path):
            if log.exists():
                os.link(log, before / log.name)  # SQLite may delete it, be it in order or not
        if path.exists() and _empty_log(path):
            for log in logs(before / path.name):
                log.unlink(missing_ok=True)


def _empty_log(path: Path) -> bool:
    """Tell whether all of the log is in the database now, which is not so if that is damaged."""
    with closing(driver.module.connect(path, timeout=0, isolation_level=None)) as connection:
        try:
            connection.execute("PRAGMA journal_mode = DELETE").fetchone()
        except driver.DatabaseError as error:
            code = driver.error_code(error)
            if code in (driver.CORRUPT, driver.NOTADB):
                return False  # the reason, perhaps, for this restore
            if code in (driver.BUSY, driver.LOCKED):
                why = f"{path} is in use ({error}). Stop the app and its workers first."
            else:
                why = f"{path} cannot be set aside with all that is in its log: {error}."
            raise BackupError(why) from error
    return True


def _keep(places: Iterable[Path], before: Path) -> None:
    """Keep the former files, all of them before the first one is replaced."""
    for place in places:
        if place.exists():
            os.link(place, before / place.name)  # it stays in place until it is replaced
    _sync(before)
    _sync(before.parent)


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

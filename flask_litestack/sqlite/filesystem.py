"""The folder of the files: can it be made, written and locked the way SQLite needs?"""

from __future__ import annotations

import errno
import itertools
import mmap
import os
import shutil
import stat
import tempfile
import time
import urllib.parse
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataPathError
from .databases import Databases

try:
    import fcntl
    import pwd
except ImportError:  # Windows has neither these locks nor these users
    HAS_POSIX = False
else:
    HAS_POSIX = True

# fmt: off
#: SQLite's WAL needs memory shared by all its processes, which no network offers
#: (https://sqlite.org/wal.html, "WAL does not work over a network filesystem").
NETWORK = {
    "9p", "afs", "beegfs", "ceph", "cifs", "coda", "davfs", "drvfs", "gfs2", "gpfs", "lustre",
    "ncpfs", "nfs", "nfs4", "ocfs2", "orangefs", "pvfs2", "smb", "smb2", "smb3", "smbfs",
}

#: The network file systems among FUSE's: mounted as ``fuse.NAME``, or as ``fuse`` from NAME.
FUSE_NETWORK = {
    "alluxio", "blobfuse", "blobfuse2", "ceph", "ceph-fuse", "curlftpfs", "davfs2", "gcsfuse",
    "geesefs", "glusterfs", "goofys", "gvfsd-fuse", "juicefs", "mfsmount", "mount-s3",
    "mountpoint-s3", "rclone", "s3fs", "s3ql", "seaweedfs", "smbnetfs", "sshfs",
}

#: Folders a virtual machine shares with its host: no shared memory, or locks that end halfway.
SHARED_FOLDERS = {"vboxsf", "prl_fs", "vmhgfs", "fuse.vmhgfs-fuse"}
# fmt: on

#: The folder, beside the databases, of the locks and sockets of living processes.
RUN = "run"

MOUNTS = Path("/proc/self/mountinfo")

#: Lies in the data folder while a restore replaces the files there, one after the other.
UNFINISHED = "restore.unfinished"

#: Whether this is what puts an interrupted restore right, and so may load the app meanwhile.
is_restoring: ContextVar[bool] = ContextVar("is_restoring", default=False)


@dataclass(frozen=True)
class Mount:
    """The mounted file system that a path lies on."""

    point: Path
    kind: str
    """As the kernel names it: ext4, nfs4, fuse.sshfs ..."""
    source: str
    read_only: bool = False


def prepare(path: Path, databases: Databases | None = None) -> None:
    """Create the data folder with mode 0700 if it is missing and make sure SQLite can use it.

    :param databases: by default those that are called ``*.sqlite3``.
    :raises DataPathError: where it cannot be created or written (naming the user, the owner and
        the mode), where a database file in it cannot be written, or where its file system has no
        locks or no shared memory; and where run/ in it, or a file there, is not for us. A full
        disk is no reason: what is there can still be read.
        Also where a restore was interrupted, which left files of two moments.
    """
    mount = mount_of(path)
    if mount is not None and (reason := unsuitable(mount)):
        raise DataPathError(f"The data folder {path} lies on {reason} {_ELSEWHERE}")
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise DataPathError(
            f"The data folder {path} cannot be created: {_nearest(path)} is a file, not a folder."
            " Set LITESTACK_DATA_PATH to the path of a folder."
        ) from None
    except PermissionError:
        parent = _nearest(path)
        raise DataPathError(
            f"The data folder {path} cannot be created by {user()}: {describe(parent)}."
            f" {_OWN.format(path=parent, user=_user_name(_uid()))}"
        ) from None
    except OSError as error:
        raise DataPathError(
            f"The data folder {path} cannot be created: {error.strerror}. {_ELSEWHERE}"
        ) from error
    _refuse_unfinished(path)
    _probe(path, mount)
    for file in unwritable_files(databases or Databases(path)):
        raise DataPathError(
            f"{user()} cannot write {describe(file)}."
            f" {_OWN.format(path=file, user=_user_name(_uid()))}"
        )
    _check_run(path / RUN)


def run_trouble(error: OSError, database: Path) -> DataPathError:
    """Explain why something in run/ beside a database could not be made or opened."""
    run = database.parent / RUN
    if not run.is_dir():
        return _not_a_folder(run, database.name)
    if isinstance(error, PermissionError):
        return _not_ours(_nearest(Path(error.filename or run)), run)
    return DataPathError(f"{run} cannot be used: {error.strerror}. {_ELSEWHERE}")


def unsuitable(mount: Mount) -> str | None:
    """Say why SQLite cannot live on this file system: "nfs4 (...)", or None where it can."""
    name = mount.kind.removeprefix("fuse.")
    if mount.kind in NETWORK or (mount.kind.startswith("fuse.") and name in FUSE_NETWORK):
        network = True
    elif mount.kind == "fuse":
        network = mount.source in FUSE_NETWORK or "://" in mount.source
        name = mount.source
    else:
        network = False
    if network:
        what = "a network file system" if name != "9p" else "a folder shared with another machine"
    elif mount.kind in SHARED_FOLDERS:
        what = "a folder shared with the host of this virtual machine"
    else:
        return None
    return (
        f"{mount.kind} from {mount.source}, mounted at {mount.point}: {what}, without the file"
        " locks and the shared memory that SQLite needs."
    )


def mount_of(path: Path) -> Mount | None:
    """Find the mount that a path (which need not exist) lies on; None where it cannot be told.

    The format is described in proc_pid_mountinfo(5).
    """
    try:
        lines = MOUNTS.read_bytes().decode(errors="surrogateescape").splitlines()
    except OSError:
        return None
    target = Path(os.path.realpath(path))
    found: Mount | None = None
    for line in lines:
        before, _, after = line.partition(" - ")
        left, right = before.split(" "), after.split(" ")
        point = Path(_unescape(left[4]))
        # Of two mounts on one point the later one covers the earlier.
        if target.is_relative_to(point) and (
            found is None or len(point.parts) >= len(found.point.parts)
        ):
            read_only = "ro" in left[5].split(",") or "ro" in right[2].split(",")
            found = Mount(point, right[0], _unescape(right[1]), read_only)
    return found


def unwritable_files(databases: Databases) -> list[Path]:
    """List the database files that this user cannot write."""
    return [file for file in databases.files() if _is_unwritable(file)]


def _is_unwritable(file: Path) -> bool:
    """Tell whether a file is there, and this user cannot write it.

    access() also says no to one that another process has just deleted to make it anew.
    """
    for _ in range(3):
        if os.access(file, os.W_OK, **_EFFECTIVE) or not file.exists():
            return False
        time.sleep(0.001)
    return True


def path_of(name: str) -> Path | None:
    """Return the file that a database's name stands for; None if that is in memory.

    :param name: what SQLite opens: a path, or a URI (https://sqlite.org/uri.html).
    """
    if name.startswith("file:"):
        uri = urllib.parse.urlsplit(name)
        query = urllib.parse.parse_qs(uri.query)
        if query.get("mode") == ["memory"] or query.get("vfs") == ["memdb"]:
            return None
        name = urllib.parse.unquote(uri.path)
    return Path(name).absolute() if name and name != ":memory:" else None


def free(path: Path) -> int:
    """Return the bytes that this user may still write where a path (which need not exist) lies."""
    return shutil.disk_usage(_nearest(path.absolute())).free


def describe(path: Path) -> str:
    """Say to whom a file or folder belongs: "/data (owner root, uid 0, mode 0755)"."""
    found = path.stat()
    mode = stat.S_IMODE(found.st_mode)
    return f"{path} (owner {_user_name(found.st_uid)}, uid {found.st_uid}, mode {mode:04o})"


def user() -> str:
    """Say who this process is: "user app (uid 1000)"."""
    return f"user {_user_name(_uid())} (uid {_uid()})"


def _check_run(run: Path) -> None:
    if not os.path.lexists(run):
        return
    if not run.is_dir():
        raise _not_a_folder(run, "the databases")
    # Sockets are left out: whoever does not hear a wake-up looks by himself.
    files = (file for file in run.iterdir() if file.is_file())
    for place in itertools.chain([run], files):
        if _is_unwritable(place):
            raise _not_ours(place, run)


def _not_a_folder(run: Path, database: str) -> DataPathError:
    return DataPathError(
        f"{run} is a file, but the folder of that name beside {database} is for locks and sockets."
        " Rename the file, or give the database a folder of its own."
    )


def _not_ours(place: Path, run: Path) -> DataPathError:
    return DataPathError(
        f"{user()} cannot write {describe(place)}."
        f" Run `chown -R {_user_name(_uid())} {run}` as root."
    )


_ELSEWHERE = "Set LITESTACK_DATA_PATH to a folder on a local disk."
_OWN = "Run `chown {user} {path}` as root, or set LITESTACK_DATA_PATH to a folder of your own."
#: Ask for the effective user, who is the one that opens files, where the system can tell.
_EFFECTIVE = {"effective_ids": True} if os.access in os.supports_effective_ids else {}
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}


def _refuse_unfinished(path: Path) -> None:
    mark = path / UNFINISHED
    if is_restoring.get():
        return
    try:
        what = mark.read_text().strip()
    except OSError:
        return  # not there, or in a folder that cannot be used anyway
    raise DataPathError(
        f"A restore was interrupted, so {path} holds files of two moments (it was of {what}). "
        "Run `flask litestack restore` again; or put the former files back, and delete "
        f"{mark}."
    )


def _probe(path: Path, mount: Mount | None) -> None:
    """Create, lock and map an unnamed file, as SQLite will."""
    try:
        with tempfile.TemporaryFile(dir=path) as file:
            if HAS_POSIX:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                file.truncate(mmap.PAGESIZE)
                mmap.mmap(file.fileno(), mmap.PAGESIZE).close()
    except OSError as error:
        if error.errno in _NO_SPACE:
            return
        if error.errno == errno.EROFS:
            where = f", mounted at {mount.point}" if mount else ""
            raise DataPathError(
                f"The data folder {path} is on a read-only file system{where}. {_ELSEWHERE}"
            ) from error
        if isinstance(error, PermissionError):
            raise DataPathError(
                f"The data folder is not writable for {user()}: {describe(path)}."
                f" {_OWN.format(path=path, user=_user_name(_uid()))}"
            ) from error
        where = f" ({mount.kind})" if mount else ""
        raise DataPathError(
            f"The file system of the data folder {path}{where} cannot create, lock and map files:"
            f" {error.strerror}. {_ELSEWHERE}"
        ) from error


def _nearest(path: Path) -> Path:
    """The path itself or its nearest parent that exists."""
    return next(place for place in (path, *path.parents) if os.path.lexists(place))


def _unescape(field: str) -> str:
    """Undo the octal escapes of mountinfo: space, tab, newline, backslash."""
    for escaped, plain in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        field = field.replace(escaped, plain)
    return field


def _uid() -> int:
    return os.geteuid() if HAS_POSIX else 0


def _user_name(uid: int) -> str:
    """The name of a user, or the number where it has none (usual in a container)."""
    if not HAS_POSIX:
        return os.environ.get("USERNAME", "?")
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)

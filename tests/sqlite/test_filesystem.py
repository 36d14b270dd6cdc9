"""The data folder: created, refused by name, explained."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from flask_litestack.errors import DataPathError
from flask_litestack.sqlite import filesystem
from flask_litestack.sqlite.filesystem import Mount

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user, so needs root")


def test_a_missing_folder_is_created_for_its_owner_alone(tmp_path: Path) -> None:
    filesystem.prepare(tmp_path / "a" / "data")

    assert stat.S_IMODE((tmp_path / "a" / "data").stat().st_mode) == 0o700
    assert list((tmp_path / "a" / "data").iterdir()) == []


def test_an_existing_folder_keeps_its_mode(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)

    filesystem.prepare(tmp_path)

    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")

    with pytest.raises(DataPathError, match=r"data is a file, not a folder.*LITESTACK_DATA_PATH"):
        filesystem.prepare(tmp_path / "data")
    with pytest.raises(DataPathError, match="data is a file, not a folder"):
        filesystem.prepare(tmp_path / "data" / "deeper")


def prepare_as_nobody(path: Path) -> str:
    """Run prepare() as the unprivileged uid 65534 in a process of its own; its error's text."""
    program = (
        "import os, sys, pathlib\n"
        "from flask_litestack.errors import DataPathError\n"
        "from flask_litestack.sqlite import filesystem\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "try:\n"
        "    filesystem.prepare(pathlib.Path(sys.argv[1]))\n"
        "except DataPathError as error:\n"
        "    print(error)\n"
    )
    command = [sys.executable, "-c", program, str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def shared_folder() -> Iterator[Path]:
    """A folder that another user can reach (tmp_path's parents are 0700)."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


@as_root
def test_a_folder_of_another_user_names_user_owner_mode_and_the_fix(shared_folder: Path) -> None:
    message = prepare_as_nobody(shared_folder)

    assert "(uid 65534)" in message
    assert f"{shared_folder} (owner root, uid 0, mode 0755)" in message
    assert f"{shared_folder}` as root" in message
    assert "chown" in message


@as_root
def test_a_parent_of_another_user_is_named(shared_folder: Path) -> None:
    message = prepare_as_nobody(shared_folder / "a" / "data")

    assert f"{shared_folder}/a/data cannot be created by user" in message
    assert f"{shared_folder} (owner root, uid 0, mode 0755)" in message


@as_root
def test_a_database_left_by_root_is_named(shared_folder: Path) -> None:
    os.chown(shared_folder, 65534, 65534)
    (shared_folder / "data.sqlite3").write_bytes(b"")

    message = prepare_as_nobody(shared_folder)

    assert f"cannot write {shared_folder}/data.sqlite3 (owner root, uid 0, mode 0644)" in message
    assert f"{shared_folder}/data.sqlite3` as root" in message


@as_root
@pytest.mark.parametrize("left", ["run", "run/data.sqlite3.writer"])
def test_what_root_left_in_run_is_named(shared_folder: Path, left: str) -> None:
    """Of a `flask shell` on the server, say."""
    (shared_folder / "run").mkdir(mode=0o700)
    (shared_folder / "run" / "data.sqlite3.writer").touch(mode=0o600)
    for path in [shared_folder, *shared_folder.rglob("*")]:
        os.chown(path, 65534, 65534)
    os.chown(shared_folder / left, 0, 0)

    message = prepare_as_nobody(shared_folder)

    assert f"cannot write {shared_folder}/{left} (owner root, uid 0, mode 0" in message
    assert f"{shared_folder}/run` as root" in message
    assert "chown -R" in message


def test_a_file_that_is_called_run_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").touch()

    with pytest.raises(DataPathError, match=f"{tmp_path}/run is a file"):
        filesystem.prepare(tmp_path)


@as_root
def test_the_socket_of_another_user_does_not_stop_the_folder_from_being_used(
    shared_folder: Path,
) -> None:
    os.chown(shared_folder, 65534, 65534)
    (shared_folder / "run").mkdir()
    os.chown(shared_folder / "run", 65534, 65534)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as left:
        left.bind(f"{shared_folder}/run/mailbox")

    assert prepare_as_nobody(shared_folder) == ""


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("/data/shop.db", "/data/shop.db"),
        ("file:/data/shop.db", "/data/shop.db"),
        ("file:///data/my%20shop.db?mode=ro", "/data/my shop.db"),
        ("file:/data/shop.db?vfs=unix", "/data/shop.db"),
        ("", None),
        (":memory:", None),
        ("file::memory:?cache=shared", None),
        ("file:shop?mode=memory&cache=shared", None),
        ("file:/shop?vfs=memdb", None),
    ],
)
def test_the_file_of_a_databases_name(name: str, path: str | None) -> None:
    assert filesystem.path_of(name) == (None if path is None else Path(path))


MOUNTINFO = """\
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
40 27 0:40 / /data rw,relatime shared:7 - ext4 /dev/vdb rw
41 40 0:41 / /data/with\\040space rw - nfs4 server:/export rw
42 27 0:42 / /covered rw - ext4 /dev/vdc rw
43 27 0:43 / /covered rw - tmpfs tmpfs rw
44 27 0:44 / /frozen ro,relatime - ext4 /dev/vdd rw
"""


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/srv/app", Mount(Path("/"), "ext4", "/dev/vda")),
        ("/data", Mount(Path("/data"), "ext4", "/dev/vdb")),
        ("/data/deep/er", Mount(Path("/data"), "ext4", "/dev/vdb")),
        ("/database", Mount(Path("/"), "ext4", "/dev/vda")),
        ("/data/with space/x", Mount(Path("/data/with space"), "nfs4", "server:/export")),
        ("/covered", Mount(Path("/covered"), "tmpfs", "tmpfs")),
        ("/frozen", Mount(Path("/frozen"), "ext4", "/dev/vdd", read_only=True)),
    ],
)
def test_the_mount_of_a_path_is_the_deepest_and_latest(
    path: str, found: Mount, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filesystem, "MOUNTS", tmp_path / "mountinfo")
    filesystem.MOUNTS.write_text(MOUNTINFO)

    assert filesystem.mount_of(Path(path)) == found


def test_where_mounts_cannot_be_told_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filesystem, "MOUNTS", tmp_path / "no-such-file")

    assert filesystem.mount_of(tmp_path) is None


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        ("nfs", "server:/export"),
        ("nfs4", "server:/export"),
        ("cifs", "//server/share"),
        ("smb3", "//server/share"),
        ("9p", "drvfs"),
        ("ceph", "1.2.3.4:/"),
        ("fuse.sshfs", "host:/"),
        ("fuse.s3fs", "bucket"),
        ("fuse.rclone", "remote:"),
        ("fuse", "mountpoint-s3"),
        ("fuse", "https://dav.example.org/"),
        ("vboxsf", "share"),
    ],
)
def test_a_file_system_without_the_locks_is_refused_by_name(kind: str, source: str) -> None:
    reason = filesystem.unsuitable(Mount(Path("/mnt"), kind, source))

    assert reason is not None
    assert kind in reason
    assert "/mnt" in reason


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "zfs", "overlay", "tmpfs", "fuseblk"])
def test_a_local_file_system_is_not_refused(kind: str) -> None:
    assert filesystem.unsuitable(Mount(Path("/"), kind, "/dev/vda")) is None


def test_prepare_refuses_an_unsuitable_mount_before_it_creates_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filesystem, "MOUNTS", tmp_path / "mountinfo")
    filesystem.MOUNTS.write_text(f"1 0 0:1 / {tmp_path}/nfs rw - nfs4 server:/export rw\n")

    with pytest.raises(DataPathError, match=r"nfs4 from server:/export.*LITESTACK_DATA_PATH"):
        filesystem.prepare(tmp_path / "nfs" / "data")
    assert not (tmp_path / "nfs").exists()


REMAKE = """
import os, sys, time
while True:
    time.sleep(0.0005)
    os.close(os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY))
    os.unlink(sys.argv[1])
"""


def test_a_file_that_another_process_makes_anew_is_not_taken_for_read_only(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", REMAKE, tmp_path / "cache.sqlite3"]) as other:
        try:
            for _ in range(2_000):
                filesystem.prepare(tmp_path)
        finally:
            other.kill()


@as_root
def test_a_read_only_mount_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "frozen"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "ro", "none", str(folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("this machine does not let root mount")
    try:
        with pytest.raises(DataPathError, match="read-only file system"):
            filesystem.prepare(folder)
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@as_root
def test_a_full_disk_does_not_stop_the_folder_from_being_used(tmp_path: Path) -> None:
    folder = tmp_path / "full"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k,nr_inodes=3", "none", str(folder)],
        capture_output=True,
    )
    if mounted.returncode:
        pytest.skip("this machine does not let root mount")
    try:
        (folder / "data.sqlite3").touch()
        (folder / "more").touch()
        with pytest.raises(OSError, match="No space left"):
            (folder / "too-much").touch()
        filesystem.prepare(folder)
    finally:
        subprocess.run(["umount", str(folder)], check=True)

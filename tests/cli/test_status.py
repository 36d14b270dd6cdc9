"""``flask litestack status``."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.servers import environment

from .commands import as_json, litestack

HOLD = """
import sys, time
from flask_litestack import sqlite
connection = sqlite.connect(sys.argv[1])
connection.begin_immediate()
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def writer(path: Path) -> Iterator[int]:
    """Another process that holds the write lock of a file; its pid."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"held\n"
        yield process.pid
    finally:
        process.stdin.close()
        process.wait(30)
        process.stdout.close()


def test_before_the_first_use_there_is_nothing_and_nothing_is_made(shop: Path) -> None:
    done = litestack(shop, "status", "--json")

    assert done.returncode == 0, done.stderr
    found = as_json(done)
    assert found["data_path"] == str(shop / "data")
    assert found["files"] == []
    assert not (shop / "data").exists()


def test_it_shows_files_with_their_sizes_and_sqlite(used_shop: Path) -> None:
    found = as_json(litestack(used_shop, "status", "--json"))

    [file] = found["files"]
    assert file["name"] == "data.sqlite3"
    assert file["size"] >= 4096
    assert found["sqlite"].startswith("3.")
    assert found["db"]["writer"] is None
    assert found["db"]["file"] == str(used_shop / "data" / "data.sqlite3")


def test_it_names_who_writes_and_who_has_the_files_open(used_shop: Path) -> None:
    with writer(used_shop / "data" / "data.sqlite3") as pid:
        found = as_json(litestack(used_shop, "status", "--json"))
        text = litestack(used_shop, "status").stdout

    assert found["db"]["writer"]["pid"] == pid
    assert found["db"]["writer"]["stopped"] is False
    [process] = found["processes"]
    assert process["pid"] == pid
    assert process["files"] == ["data.sqlite3"]
    assert f"pid       {pid}\n" in text


def test_a_person_reads_aligned_words_and_sizes(used_shop: Path) -> None:
    text = litestack(used_shop, "status").stdout

    assert text.startswith(f"data path  {used_shop / 'data'}\nsqlite     3.")
    assert "  name          size    wal size\n  data.sqlite3  " in text
    assert "\nprocesses  none\n" in text


def test_a_part_that_cannot_be_read_does_not_hide_the_others(shop: Path) -> None:
    (shop / "data").mkdir()
    (shop / "data" / "data.sqlite3").write_bytes(b"not a database, certainly" * 100)

    done = litestack(shop, "status", "--json")

    found = as_json(done)
    assert done.returncode == 1
    assert "is not a SQLite database" in found["jobs"]["problem"]
    assert found["cable"]["clients"] == 0
    assert found["files"][0]["name"] == "data.sqlite3"


#: A Python that another user may run too, which one in root's home is not.
SYSTEM_PYTHON = "/usr/bin/python3"


def can_become_another_user() -> bool:
    if os.geteuid() != 0 or not Path(SYSTEM_PYTHON).exists():
        return False
    done = subprocess.run([SYSTEM_PYTHON, "-V"], capture_output=True, text=True)
    return done.stdout.split()[1].split(".")[:2] == list(map(str, sys.version_info[:2]))


as_another_user = pytest.mark.skipif(
    not can_become_another_user(),
    reason="becomes another user, so needs root and the same Python outside root's home",
)

NOBODY = 65534


@pytest.fixture
def public_shop(used_shop: Path) -> Iterator[Path]:
    """The app of used_shop in a folder that everyone can enter, its data being nobody's."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "shop"
        shutil.copytree(used_shop, folder)
        Path(name).chmod(0o755)
        folder.chmod(0o755)
        for path in [folder / "data", *(folder / "data").rglob("*")]:
            os.chown(path, NOBODY, NOBODY)
        yield folder


def by_system_python(
    folder: Path, *command: str, uid: int = 0, app: str = "shop"
) -> subprocess.CompletedProcess[str]:
    """Run ``flask litestack COMMAND`` as a user."""
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    variables = environment(FLASK_APP=app, LITESTACK_DATA_PATH=str(folder / "data"))
    variables["PYTHONPATH"] += f"{os.pathsep}{packages}"
    return subprocess.run(
        [SYSTEM_PYTHON, "-m", "flask", "litestack", *command],
        cwd=folder,
        env=variables,
        user=uid,
        capture_output=True,
        text=True,
    )


@as_another_user
@pytest.mark.parametrize(
    "command",
    [["status"], ["doctor"], ["dbconsole", "INSERT INTO item (name) VALUES ('by root')"]],
    ids=lambda command: command[0],
)
def test_root_leaves_no_file_of_its_own_in_another_users_folder(
    public_shop: Path, command: list[str]
) -> None:
    """As in the console of a server, whose app runs as another user."""
    (public_shop / "wsgi.py").write_text(
        "from shop import create_app, litestack\n"
        "app = create_app()\n"
        "with app.app_context(), litestack.db.write():\n"
        "    pass  # an app that uses its database as soon as it is loaded\n"
    )

    done = by_system_python(public_shop, *command, app="wsgi")

    assert done.returncode == 0, done.stderr + done.stdout
    data = public_shop / "data"
    assert (data / "run").exists()
    assert {path.stat().st_uid for path in data.rglob("*")} == {NOBODY}


@as_another_user
def test_who_may_not_read_the_folder_is_told_who_may(public_shop: Path) -> None:
    os.chown(public_shop / "data", 0, 0)

    status = by_system_python(public_shop, "status", uid=NOBODY)
    doctor = by_system_python(public_shop, "doctor", uid=NOBODY)

    assert status.returncode == 1
    assert "Traceback" not in status.stderr + doctor.stderr
    assert "run the command as root" in status.stderr
    assert doctor.returncode == 1
    assert "is not writable for user nobody (uid 65534)" in doctor.stdout

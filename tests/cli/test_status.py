"""``flask litestack status``."""

from __future__ import annotations

import os
import subprocess
import sys
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


@pytest.mark.skipif(
    os.geteuid() != 0 or not Path("/usr/bin/python3").exists(),
    reason="becomes another user, so needs root and a Python outside root's home",
)
def test_root_leaves_no_file_of_its_own_in_another_users_folder(used_shop: Path) -> None:
    """As in the console of a server, whose app runs as another user."""
    interpreter = "/usr/bin/python3"
    version = subprocess.run([interpreter, "-V"], capture_output=True, text=True).stdout
    if version.split()[1].split(".")[:2] != list(map(str, sys.version_info[:2])):
        pytest.skip("the system's Python is another version")
    for folder in [used_shop, *used_shop.parents][:3]:
        folder.chmod(0o755)
    data = used_shop / "data"
    for path in [data, *data.rglob("*")]:
        os.chown(path, 65534, 65534)
    (used_shop / "wsgi.py").write_text(
        "from shop import create_app, litestack\n"
        "app = create_app()\n"
        "with app.app_context(), litestack.db.write():\n"
        "    pass\n"
    )
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    variables = environment(FLASK_APP="wsgi", LITESTACK_DATA_PATH=str(data))
    variables["PYTHONPATH"] += f":{packages}"

    for command in ("status", "doctor"):
        done = subprocess.run(
            [interpreter, "-m", "flask", "litestack", command],
            cwd=used_shop,
            env=variables,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr + done.stdout

    assert {path.stat().st_uid for path in data.rglob("*")} == {65534}
    assert (data / "run").exists()

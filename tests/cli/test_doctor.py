"""``flask litestack doctor``."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flask_litestack.sqlite import driver
from tests.disks import on_a_disk

from .commands import adopting_shop, as_json, litestack
from .test_status import writer


@on_a_disk
def test_a_healthy_app_has_no_errors(used_shop: Path) -> None:
    done = litestack(used_shop, "doctor", "--json")

    found = {finding["check"]: finding for finding in as_json(done)}
    assert done.returncode == 0, done.stdout
    assert not [f for f in found.values() if f["severity"] == "error"]
    assert "journal_mode wal" in found["pragmas"]["what"]
    assert driver.version in found["sqlite"]["what"]
    assert set(found) >= {"sqlite", "data folder", "disk", "owners", "pragmas", "wal", "write lock"}


@on_a_disk
def test_before_the_first_use_nothing_is_made(shop: Path) -> None:
    done = litestack(shop, "doctor")

    assert done.returncode == 0, done.stdout
    assert "is not there yet; it is made at first use" in done.stdout
    assert not (shop / "data").exists()


def test_a_pragma_that_was_changed_is_an_error_with_its_fix(used_shop: Path) -> None:
    with (used_shop / "shop.py").open("a") as file:
        file.write(
            "\nfrom sqlalchemy import Engine, event\n"
            "@event.listens_for(Engine, 'connect')\n"
            "def spoil(connection, record):\n"
            "    connection.execute('PRAGMA foreign_keys = OFF')\n"
        )

    done = litestack(used_shop, "doctor")

    assert done.returncode == 1
    assert "foreign_keys is 0 instead of 1" in done.stdout
    assert "Fix: Look for a PRAGMA in your code" in done.stdout


def test_who_holds_the_write_lock_for_long_is_named(used_shop: Path) -> None:
    with writer(used_shop / "data" / "data.sqlite3") as pid:
        done = litestack(used_shop, "doctor", "--json", FLASK_LITESTACK_BUSY_TIMEOUT="0.3")

    [finding] = [f for f in as_json(done) if f["check"] == "write lock"]
    assert done.returncode == 1
    assert finding["severity"] == "error"
    assert f"process {pid}" in finding["what"]


def test_a_file_that_is_not_a_database_is_an_error_without_a_traceback(shop: Path) -> None:
    (shop / "data").mkdir()
    (shop / "data" / "data.sqlite3").write_bytes(b"not a database, certainly" * 100)

    done = litestack(shop, "doctor")

    assert done.returncode == 1
    assert "not a database" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file away, so needs root")
def test_a_file_of_another_user_is_an_error_that_names_it(used_shop: Path) -> None:
    os.chown(used_shop / "data" / "data.sqlite3", 65534, 65534)

    done = litestack(used_shop, "doctor")

    assert done.returncode == 1
    assert "data.sqlite3 (owner nobody, uid 65534, mode 0644)" in done.stdout
    assert f"chown -R 0 {used_shop / 'data'}" in done.stdout


@on_a_disk
def test_an_adopted_database_outside_the_data_folder_is_a_warning(tmp_path: Path) -> None:
    adopting_shop(tmp_path, f"sqlite:///{tmp_path}/elsewhere.db")

    done = litestack(tmp_path, "doctor", "--json")

    [finding] = [f for f in as_json(done) if f["severity"] == "warning"]
    assert done.returncode == 0
    assert f"{tmp_path}/elsewhere.db is not in the data folder" in finding["what"]


@pytest.mark.parametrize(
    ("uri", "what"),
    [
        ("postgresql+psycopg://me:secret@localhost:1/shop", "is postgresql, not SQLite"),
        ("sqlite://", "is in memory, which is good for tests only"),
    ],
)
def test_an_adopted_database_that_is_no_file_is_said_plainly(
    tmp_path: Path, uri: str, what: str
) -> None:
    adopting_shop(tmp_path, uri)

    doctor = litestack(tmp_path, "doctor", "--json")
    status = litestack(tmp_path, "status", "--json")

    expected = f"app's database {what}: jobs and backup are not available."
    [finding] = [f for f in as_json(doctor) if f["check"] in ("database", "jobs", "backup")]
    assert finding["severity"] == "warning"
    assert expected in finding["what"]
    assert doctor.returncode == 0, doctor.stdout
    assert status.returncode == 0, status.stderr
    found = as_json(status)
    assert expected in found["db"]["note"]
    assert found["degraded"] == []
    assert found["cable"]["clients"] == 0

"""Which files are databases: by their suffix in the data folder, elsewhere by their engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from flask_litestack.sqlite.databases import Databases


@pytest.fixture
def databases(tmp_path: Path) -> Databases:
    folder, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    for name in ("cache.sqlite3", "cable.sqlite3", "shop.db", "shop.db-wal", "secret_key"):
        (folder / name).touch()
    for name in ("users.db", "users.db-shm", "other.db", "other.sqlite3"):
        (elsewhere / name).touch()
    (tmp_path / "link").symlink_to(folder)
    return Databases.of(folder, [tmp_path / "link" / "shop.db", elsewhere / "users.db"])


def test_the_databases_of_engines_come_first_and_nothing_comes_twice(databases: Databases) -> None:
    names = [path.name for path in databases.existing()]
    assert names == ["shop.db", "users.db", "cable.sqlite3", "cache.sqlite3"]


def test_their_logs_belong_to_them(databases: Databases) -> None:
    names = [path.name for path in databases.files()]
    assert names == [
        "cable.sqlite3", "cache.sqlite3", "shop.db", "shop.db-wal", "users.db", "users.db-shm"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("file", "belongs"),
    [
        ("data/new.sqlite3", True),
        ("data/new.sqlite3-journal", True),
        ("data/shop.db-journal", True),
        ("data/secret_key", False),
        ("data/backups/data.sqlite3", False),
        ("elsewhere/users.db-wal", True),
        ("elsewhere/other.db", False),
        ("elsewhere/other.sqlite3", False),
    ],
)
def test_a_file_need_not_be_there_to_be_one(
    databases: Databases, tmp_path: Path, file: str, belongs: bool
) -> None:
    assert (tmp_path / file in databases) is belongs

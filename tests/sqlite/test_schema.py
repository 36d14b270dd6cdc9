"""Our own tables: made once, upgraded once, refused when too new."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from flask_litestack import sqlite
from flask_litestack.errors import NewerStoreError
from flask_litestack.sqlite.schema import Schema

V1 = ["CREATE TABLE litestack_thing (id INTEGER PRIMARY KEY)"]
V2 = ["ALTER TABLE litestack_thing ADD COLUMN name TEXT", "UPDATE litestack_thing SET name = 'x'"]
BROKEN = ["CREATE TABLE litestack_more (a)", "CREATE TABLE litestack_thing (b)"]


def test_tables_are_created_and_upgraded_once(tmp_path: Path) -> None:
    connection = sqlite.connect(tmp_path / "data.sqlite3")
    Schema("thing", [V1]).ensure(connection)
    connection.execute("INSERT INTO litestack_thing VALUES (1)")
    connection.commit()
    Schema("thing", [V1, V2]).ensure(connection)
    Schema("thing", [V1, V2]).ensure(connection)
    assert connection.execute("SELECT * FROM litestack_thing").fetchall() == [(1, "x")]
    assert not connection.in_transaction
    connection.close()


def test_many_first_users_at_once_create_the_tables_once(tmp_path: Path) -> None:
    errors: list[BaseException] = []

    def first_use() -> None:
        try:
            connection = sqlite.connect(tmp_path / "data.sqlite3")
            Schema("thing", [V1, V2]).ensure(connection)
            connection.close()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=first_use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_a_failing_upgrade_changes_nothing(tmp_path: Path) -> None:
    connection = sqlite.connect(tmp_path / "data.sqlite3")
    Schema("thing", [V1]).ensure(connection)
    with pytest.raises(Exception, match="already exists"):
        Schema("thing", [V1, BROKEN]).ensure(connection)
    names = connection.execute("SELECT name FROM sqlite_schema WHERE name LIKE '%more'").fetchall()
    assert names == []
    assert not connection.writing
    connection.close()


def test_an_older_release_goes_on_after_an_additive_upgrade(tmp_path: Path) -> None:
    connection = sqlite.connect(tmp_path / "data.sqlite3")
    Schema("thing", [V1, V2]).ensure(connection)
    Schema("thing", [V1]).ensure(connection)
    connection.close()


def test_an_older_release_refuses_tables_it_cannot_follow(tmp_path: Path) -> None:
    connection = sqlite.connect(tmp_path / "data.sqlite3")
    Schema("thing", [V1, V2], readable_from=2).ensure(connection)
    with pytest.raises(NewerStoreError, match="version 2"):
        Schema("thing", [V1]).ensure(connection)
    connection.close()

"""A database file with rows, and two connections to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from flask_litestack import sqlite
from flask_litestack.sqlite.connection import Connection


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data.sqlite3"


@pytest.fixture
def connection(path: Path) -> Iterator[Connection]:
    with_rows = sqlite.connect(path)
    with_rows.execute("CREATE TABLE item (id INTEGER PRIMARY KEY, n INTEGER UNIQUE)")
    with_rows.executemany("INSERT INTO item (n) VALUES (?)", [(n,) for n in range(100)])
    with_rows.commit()
    yield with_rows
    with_rows.close()


@pytest.fixture
def other(path: Path, connection: Connection) -> Iterator[Connection]:
    other = sqlite.connect(path, busy_timeout=0.2)
    yield other
    other.close()

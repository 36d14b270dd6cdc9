from __future__ import annotations

from pathlib import Path

import pytest

from flask_litestack.sqlite import driver

from .commands import SHOP


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A folder with an app, shop.py, whose data folder is not there yet."""
    (tmp_path / "shop.py").write_text(SHOP)
    return tmp_path


@pytest.fixture
def used_shop(shop: Path) -> Path:
    """The same with a table ``item`` of two rows in data/data.sqlite3."""
    (shop / "data").mkdir(mode=0o700)
    # The driver's own connection: ours would keep a file in run/ open in the tests' process.
    connection = driver.module.connect(shop / "data" / "data.sqlite3")
    connection.execute("CREATE TABLE item (id INTEGER PRIMARY KEY, name VARCHAR NOT NULL)")
    connection.execute("INSERT INTO item (name) VALUES ('pen'), ('book')")
    connection.commit()
    connection.close()
    return shop

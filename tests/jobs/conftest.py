from __future__ import annotations

from collections.abc import Iterator

import pytest
from flask import Flask

from flask_litestack import Litestack
from flask_litestack.pytest_plugin import jobs

__all__ = ["jobs"]


@pytest.fixture
def context(app: Flask, litestack: Litestack) -> Iterator[None]:
    with app.app_context():
        yield
        litestack.db.close_session()

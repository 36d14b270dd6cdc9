"""A pytest plugin, found by itself where flask-litestack is installed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from flask import Flask

    from .testing import JobTester


@pytest.fixture
def jobs(app: Flask) -> JobTester:
    """Runs and inspects the jobs of your fixture ``app``; see flask_litestack.testing."""
    from .testing import JobTester

    return JobTester(app)

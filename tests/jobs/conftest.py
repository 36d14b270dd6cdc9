from __future__ import annotations

from flask_litestack.pytest_plugin import jobs

__all__ = ["jobs"]

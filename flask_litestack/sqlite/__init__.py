"""The SQLite files: driver, tuning, transactions, schema versions, health. Knows no Flask."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from .connection import Connection


def connect(
    path: str | os.PathLike[str],
    *,
    busy_timeout: float = 5.0,
    synchronous: Literal["OFF", "NORMAL", "FULL"] = "NORMAL",
    guard: bool = True,
) -> Connection:
    """Open a database file the way this package does; see :func:`.connection.connect`."""
    from .connection import connect  # errors.py needs the driver before this can be imported

    return connect(path, busy_timeout=busy_timeout, synchronous=synchronous, guard=guard)

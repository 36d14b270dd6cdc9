"""A cursor whose results have been fetched whole."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any, Self

from . import driver


class BufferedCursor(driver.Cursor):
    """Hands out ``_rows``, which who has executed the statement fetched; the driver's if None."""

    _rows: Iterator[Any] | None = iter(())

    def fetchone(self) -> Any:
        if self._rows is None:
            return super().fetchone()
        return next(self._rows, None)

    def fetchmany(self, size: int | None = None) -> list[Any]:
        size = self.arraysize if size is None else size
        if self._rows is None:
            return super().fetchmany(size)
        return list(islice(self._rows, size))

    def fetchall(self) -> list[Any]:
        if self._rows is None:
            return super().fetchall()
        return list(self._rows)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        if self._rows is None:
            return super().__next__()
        return next(self._rows)

"""Pages of rows, newest first, that cost the same however far back they are."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Generic, TypeVar

from flask import abort
from sqlalchemy import Select, tuple_
from sqlalchemy.orm import InstrumentedAttribute, Session

from .models import LARGEST_ID

T = TypeVar("T")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True)
class Page(Generic[T]):
    items: list[T]

    #: The ``before`` of the next page; None on the last one.
    older: str | None


def paginate(
    session: Session,
    rows: Select[tuple[T]],
    *,
    by: tuple[InstrumentedAttribute[datetime], InstrumentedAttribute[int]],
    before: str | None,
    size: int,
) -> Page[T]:
    """Return the newest rows, or the newest of those before a mark.

    ``by`` are the columns of a row's time and id. The mark is the time and id of the last row
    seen, not a count of rows to skip: an index finds it at once, and rows added meanwhile do not
    shift the pages.

    :raises NotFound: if ``before`` is no mark.
    """
    if before is not None:
        rows = rows.where(tuple_(*by) < tuple_(*_parse(before)))
    rows = rows.order_by(*(column.desc() for column in by)).limit(size + 1)
    items = list(session.scalars(rows))
    if len(items) <= size:
        return Page(items, None)
    last = items[size - 1]
    return Page(items[:size], _mark(*(getattr(last, column.key) for column in by)))


def _mark(time: datetime, row_id: int) -> str:
    return f"{(time - _EPOCH) // _MICROSECOND}-{row_id}"


def _parse(mark: str) -> tuple[datetime, int]:
    try:
        microseconds, row_id = map(int, mark.split("-"))
        time = _EPOCH + microseconds * _MICROSECOND
    except (ValueError, OverflowError):
        abort(404)
    if row_id > LARGEST_ID:
        abort(404)
    return time, row_id

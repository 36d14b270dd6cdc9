"""Pieces of pages that are kept in the cache until the rows they show are changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from sqlalchemy import Connection, event, select

from . import litestack
from .models import Comment, Post, User

T = TypeVar("T")

FRONT_PAGE = "front page"

#: Seconds after which a piece is made anew all the same.
TIMEOUT = 3600


def article(post_id: int) -> str:
    """Return the key of a post's title and text."""
    return f"article {post_id}"


def comments(post_id: int) -> str:
    """Return the key of a post's newest comments, as those see them who may delete none."""
    return f"newest comments {post_id}"


def cached(key: str, make: Callable[[], T]) -> T:
    """Return a piece from the cache; if it is not there, one caller makes it for all."""
    return litestack.cache.get_or_set(key, make, TIMEOUT)


def _forget(mapper: object, connection: object, row: Any) -> None:
    """Delete what shows a row. In a transaction, this takes effect right after its commit."""
    keys = {FRONT_PAGE}
    if isinstance(row, Post):
        keys |= {article(row.id), comments(row.id)}
    elif isinstance(row, Comment):
        keys.add(comments(row.post_id))
    litestack.cache.delete_many(*keys)


def _forget_user(mapper: object, connection: Connection, user: User) -> None:
    """Delete what shows a user, whose posts and comments the database is about to remove."""
    commented = select(Comment.post_id).where(Comment.author_id == user.id).distinct()
    litestack.cache.delete_many(FRONT_PAGE, *map(comments, connection.scalars(commented)))


for row in (Post, Comment):
    for change in ("after_insert", "after_update", "after_delete"):
        event.listen(row, change, _forget)
# A user is shown in many places, but has nothing that can be changed.
event.listen(User, "before_delete", _forget_user)

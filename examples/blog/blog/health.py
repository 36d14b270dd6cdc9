"""The page by which a host sees that we are well."""

from __future__ import annotations

from flask import Blueprint
from sqlalchemy import select

from . import litestack
from .models import Post

blueprint = Blueprint("health", __name__)


@blueprint.get("/up")
def up() -> tuple[str, dict[str, str]]:
    """Read from the database, and fail if that fails."""
    litestack.db.session.execute(select(Post.id).limit(1))
    return "up\n", {"Content-Type": "text/plain", "Cache-Control": "no-store"}

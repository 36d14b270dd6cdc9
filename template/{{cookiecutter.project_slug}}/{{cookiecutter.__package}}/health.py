"""The page by which a host sees that we are well."""

from __future__ import annotations

from flask import Blueprint, Response

from . import litestack

blueprint = Blueprint("health", __name__)


@blueprint.get("/up")
def up() -> Response:
    """Answer 200 as long as the database can be read; say more to who asks with the token."""
    return litestack.up()

"""An app with a database, as most tests want it: real files in a temporary folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask
from sqlalchemy import ForeignKey
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from flask_litestack import Litestack


class Model(DeclarativeBase):
    """The base of the tests' models."""


class Post(Model):
    __tablename__ = "post"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    views: Mapped[int] = mapped_column(default=0)
    comments: Mapped[list[Comment]] = relationship(back_populates="post")


class Comment(Model):
    __tablename__ = "comment"
    id: Mapped[int] = mapped_column(primary_key=True)
    post_id: Mapped[int] = mapped_column(ForeignKey("post.id", ondelete="CASCADE"))
    text: Mapped[str]
    post: Mapped[Post] = relationship(back_populates="comments")


@pytest.fixture
def litestack() -> Litestack:
    return Litestack(metadata=Model.metadata)


@pytest.fixture
def app(litestack: Litestack, tmp_path: Path) -> Iterator[Flask]:
    """An app whose database has the tables and one post."""
    app = Flask("shop")
    app.config["LITESTACK_DATA_PATH"] = tmp_path / "data"
    app.config["LITESTACK_BUSY_TIMEOUT"] = 5
    litestack.init_app(app)
    with app.app_context():
        litestack.db.create_all()
        with litestack.db.write() as session:
            session.add(Post(id=1, title="First"))
    yield app
    with app.app_context():
        litestack.db.engine.dispose()

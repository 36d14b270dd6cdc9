"""The tables: users write posts, and comments on them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from flask_login import UserMixin
from sqlalchemy import (
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    MetaData,
    TypeDecorator,
    func,
    select,
    true,
)
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    column_property,
    mapped_column,
    relationship,
    validates,
)

LARGEST_ID = 2**63 - 1  # that SQLite has

#: A row's id as a part of a URL, or of a channel's name; what is larger is not found.
ID = f"int(max={LARGEST_ID})"


class UTCDateTime(TypeDecorator[datetime]):
    """A time with its zone, which SQLite cannot store: kept in UTC, and returned as such."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return value.astimezone(UTC).replace(tzinfo=None) if value else None

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        return value.replace(tzinfo=UTC) if value else None


def now() -> datetime:
    return datetime.now(UTC)


class Model(DeclarativeBase):
    type_annotation_map = {datetime: UTCDateTime}
    metadata = MetaData(
        # A migration can change a constraint only by its name.
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class Written:
    """What has an author."""

    author_id: Mapped[int]

    def belongs_to(self, user: Any) -> bool:
        """Tell whether somebody wrote it; nobody did who is not logged in."""
        return bool(user.is_authenticated and user.id == self.author_id)


class User(UserMixin, Model):
    __tablename__ = "user"

    #: In place of a password's hash, for someone who cannot log in.
    NO_PASSWORD = "!"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    email: Mapped[str] = mapped_column(unique=True)
    password_hash: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(default=now)
    last_login_at: Mapped[datetime | None]

    # Otherwise the next user could get the id of a removed one, whose cookie would then be theirs.
    # A migration with op.batch_alter_table() loses this unless it gets it, too, as table_kwargs.
    __table_args__ = {"sqlite_autoincrement": True}


class Post(Written, Model):
    __tablename__ = "post"

    id: Mapped[int] = mapped_column(primary_key=True)
    author_id: Mapped[int] = mapped_column(ForeignKey(User.id, ondelete="CASCADE"), index=True)
    slug: Mapped[str] = mapped_column(unique=True)
    title: Mapped[str]
    body: Mapped[str] = mapped_column(deferred=True)
    body_html: Mapped[str] = mapped_column(deferred=True)
    summary: Mapped[str]
    published_at: Mapped[datetime] = mapped_column(default=now)

    #: False until ``published_at``, when a job publishes it.
    is_public: Mapped[bool] = mapped_column(default=True, server_default=true())

    edited_at: Mapped[datetime | None]

    author: Mapped[User] = relationship(lazy="joined", innerjoin=True)

    __table_args__ = (Index(None, "published_at", "id"),)

    @validates("body")
    def _render(self, key: str, body: str) -> str:
        """Render when a post is saved, once, and not each time it is read."""
        from . import markdown  # not before somebody writes: its parser is large

        self.body_html = markdown.render(body)
        self.summary = markdown.summary(self.body_html)
        return body

    def is_visible_to(self, user: Any) -> bool:
        """Tell whether somebody may see it; its author always may."""
        return self.is_public or self.belongs_to(user)


class Comment(Written, Model):
    __tablename__ = "comment"

    id: Mapped[int] = mapped_column(primary_key=True)
    post_id: Mapped[int] = mapped_column(ForeignKey(Post.id, ondelete="CASCADE"))
    author_id: Mapped[int] = mapped_column(ForeignKey(User.id, ondelete="CASCADE"), index=True)
    body: Mapped[str] = mapped_column(deferred=True)
    body_html: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(default=now)

    author: Mapped[User] = relationship(lazy="joined", innerjoin=True)
    post: Mapped[Post] = relationship()

    __table_args__ = (Index(None, "post_id", "created_at", "id"),)

    @validates("body")
    def _render(self, key: str, body: str) -> str:
        from . import markdown

        self.body_html = markdown.render_comment(body)
        return body


Post.comment_count = column_property(
    select(func.count(Comment.id)).where(Comment.post_id == Post.id).scalar_subquery(),
    deferred=True,
)

"""What appears in open pages by itself. Whoever has no JavaScript sees it when they reload."""

from __future__ import annotations

from flask_login import current_user

from . import litestack
from .models import ID, Comment, Post


@litestack.cable.connect
def who() -> int | None:
    """Take the user of the page for the user of its connection; None: a reader without account."""
    user_id: int | None = current_user.id if current_user.is_authenticated else None
    return user_id


@litestack.channel(f"posts/<{ID}:post_id>", presence="count")
def readers(post_id: int) -> bool:
    """Let those follow a post who may see it."""
    post = litestack.db.session.get(Post, post_id)
    return post is not None and post.is_visible_to(current_user)


def show_comment(comment: Comment) -> None:
    """Put a comment into every window that shows its post. Only a reload adds its buttons."""
    name = readers.name(comment.post_id)
    target, template = "#comment-list", "posts/comment.html"
    litestack.cable.render(name, template, target=target, swap="afterbegin", comment=comment)


def remove_comment(comment: Comment) -> None:
    """Take a comment out of every window that shows its post."""
    litestack.cable.remove(readers.name(comment.post_id), f"#comment-{comment.id}")

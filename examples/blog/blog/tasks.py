"""What happens outside of requests: the worker runs it, at once, at a moment or each night."""

from __future__ import annotations

from datetime import timedelta

from flask import current_app
from sqlalchemy import delete, exists, func
from sqlalchemy.orm import undefer

from . import litestack, mail
from .models import Comment, Post, User, now

#: An account that nobody has logged in to for so long, and that wrote nothing, is removed.
UNUSED = timedelta(days=365)


@litestack.task(retries=8)
def tell_author(comment_id: int, url: str) -> None:
    """Tell a post's author about a comment of somebody else.

    :param url: of the comment, as its writer's browser has it.
    """
    comment = litestack.db.session.get(Comment, comment_id, options=[undefer(Comment.body)])
    if comment is None or comment.author_id == comment.post.author_id:
        return  # deleted meanwhile, or their own
    mail.send(
        comment.post.author.email,
        f"{comment.author.name} commented on “{comment.post.title}”",
        f"{comment.body}\n\n-- \n{current_app.config['SITE_NAME']}: {url}\n",
    )


@litestack.task
def publish(post_id: int) -> None:
    """Show a post to everybody, if its time has come: it may have been changed since."""
    post = litestack.db.session.get(Post, post_id)
    if post and post.published_at <= now():
        post.is_public = True


@litestack.task(cron="0 3 * * *")
def back_up() -> None:
    """Keep a backup of each of the last seven nights, in the data folder."""
    litestack.backup(keep=7)


@litestack.task(cron="30 3 * * *")
def tidy_up() -> None:
    """Remove accounts that were registered and never used."""
    last_seen = func.coalesce(User.last_login_at, User.created_at)
    unused = delete(User).where(
        last_seen < now() - UNUSED,
        ~exists().where(Post.author_id == User.id),
        ~exists().where(Comment.author_id == User.id),
    )
    litestack.db.session.execute(unused, execution_options={"synchronize_session": False})

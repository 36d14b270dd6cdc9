"""``flask seed``: something to look at, and someone to log in as."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import click
from flask.cli import with_appcontext
from sqlalchemy import select
from sqlalchemy.orm import Session
from werkzeug.security import generate_password_hash

from . import litestack
from .models import Comment, Post, User, now
from .slugs import slug_of

DEMO = Path(__file__).with_name("demo.toml")
EMAIL = "demo@example.com"
PASSWORD = "litestack-demo"


@click.command("seed")
@click.option("--password", help="Of the demo login; needed on a public server.")
@with_appcontext
def command(password: str | None) -> None:
    """Add demo posts, and a login. What is there already stays as it is."""
    import tomllib  # not in the server, which loads this module, too

    if password is None and "FLY_APP_NAME" in os.environ:
        raise click.UsageError("this server is public: choose the login's --password yourself.")
    password = password or PASSWORD
    password_hash = generate_password_hash(password)
    with litestack.db.write() as session:
        added = add_demo(session, tomllib.loads(DEMO.read_text()), password_hash)
    click.echo(f"{added} posts added. Log in as {EMAIL} with {password}")


def add_demo(session: Session, demo: dict[str, Any], password_hash: str) -> int:
    """Add the users, posts and comments that are missing, and return the number of posts."""
    users = {name: find_or_add_user(session, name, password_hash) for name in demo["authors"]}
    slugs = set(session.scalars(select(Post.slug)))
    missing = [post for post in demo["posts"] if slug_of(post["title"]) not in slugs]
    for post in reversed(missing):  # the oldest first, so that its id is the lowest
        published_at = now() - timedelta(days=post["days_ago"])
        row = Post(
            author_id=users[post["author"]].id,
            slug=slug_of(post["title"]),
            title=post["title"],
            body=post["body"],
            published_at=published_at,
        )
        session.add(row)
        session.flush()
        session.add_all(
            Comment(
                post_id=row.id,
                author_id=users[comment["author"]].id,
                body=comment["body"],
                created_at=published_at + timedelta(hours=comment["hours_later"]),
            )
            for comment in post.get("comments", [])
        )
    return len(missing)


def find_or_add_user(session: Session, name: str, password_hash: str) -> User:
    """The first author in the file is the demo login; the others cannot log in."""
    email = EMAIL if name == "Demo" else f"{slug_of(name)}@example.com"
    user = session.scalar(select(User).where(User.email == email))
    if user is None:
        if email != EMAIL:
            password_hash = User.NO_PASSWORD
        user = User(name=name, email=email, password_hash=password_hash)
        session.add(user)
        session.flush()
    return user

"""``flask import-posts``: Markdown files become posts."""

from __future__ import annotations

from pathlib import Path

import click
from flask.cli import with_appcontext
from sqlalchemy import select

from . import litestack
from .models import Post, User
from .slugs import slug_of

LONGEST = 100_000  # characters


@click.command("import-posts")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--author", required=True, help="The email address of who wrote them.")
@with_appcontext
def command(folder: Path, author: str) -> None:
    """Have the worker import the files FOLDER/*.md, each by a job of its own.

    A first line "# Title" is the title, else the file's name is. A file whose post is there
    already is left out, so the import can be repeated.
    """
    author_id = litestack.db.session.scalar(select(User.id).where(User.email == author.lower()))
    if author_id is None:
        raise click.UsageError(f"nobody is registered as {author}.")
    files = sorted(folder.glob("*.md"))
    texts = [read(path) for path in files]
    litestack.jobs.enqueue_many(
        import_post.call(author_id, path.stem, text)
        for path, text in zip(files, texts, strict=True)
    )
    click.echo(f"Files that the worker will import: {len(files)}")


def read(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise click.ClickException(f"{path} is not UTF-8: {error}.") from error
    if len(text) > LONGEST:
        raise click.ClickException(f"{path} is longer than {LONGEST} characters.")
    return text


@litestack.task
def import_post(author_id: int, name: str, text: str) -> None:
    """Add a post unless there is one; the job succeeds when, and only when, its row is there."""
    slug = slug_of(name) or "post"
    with litestack.db.write() as session:
        if session.scalar(select(Post.id).where(Post.slug == slug)):
            return
        first, _, rest = text.lstrip().partition("\n")
        title, body = (first[2:].strip(), rest) if first.startswith("# ") else (name, text)
        session.add(Post(author_id=author_id, slug=slug, title=title[:150] or name, body=body))

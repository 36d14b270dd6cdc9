"""Posts and their comments."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import count
from typing import NamedTuple

from flask import Blueprint, abort, flash, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue
from flask_login import current_user, login_required
from markupsafe import Markup
from sqlalchemy import Select, bindparam, select
from sqlalchemy.orm import Session, undefer
from wtforms import DateTimeLocalField, StringField, TextAreaField
from wtforms.validators import DataRequired, Length, Optional

from . import fragments, litestack, live, tasks
from .forms import TextForm
from .models import ID, Comment, Post, now
from .pagination import Page, paginate
from .slugs import slug_of

blueprint = Blueprint("posts", __name__)

POSTS_PER_PAGE = 10
COMMENTS_PER_PAGE = 50

#: Built once: to build a query for each page takes longer than to run it.
POST_BY_SLUG = select(Post).where(Post.slug == bindparam("slug"))

#: With its text, and anew although it may have been read already.
WHOLE_POST_BY_SLUG = POST_BY_SLUG.options(undefer(Post.body_html)).execution_options(
    populate_existing=True
)


def in_utc(time: datetime | None) -> datetime | None:
    return time.replace(tzinfo=UTC) if time else None


class PostForm(TextForm):
    title = StringField("Title", [DataRequired(), Length(max=150)])
    body = TextAreaField(
        "Text",
        [DataRequired(), Length(max=100_000)],
        description="Markdown: *emphasis*, **strong**, # heading, [link](https://…), > quote.",
        render_kw={"rows": 18},
    )
    published_at = DateTimeLocalField(
        "Publish at",
        [Optional()],
        format=["%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S"],
        filters=[in_utc],
        description="In UTC. Until then only you can see it. Empty: now.",
    )


class CommentForm(TextForm):
    body = TextAreaField("Your comment", [DataRequired(), Length(max=5_000)], render_kw={"rows": 4})


class NewestComments(NamedTuple):
    """A post's newest comments, as those see them who have nothing to delete there."""

    html: str
    author_ids: set[int]


@blueprint.get("/")
def index() -> ResponseReturnValue:
    before = request.args.get("before")
    if before is None:
        teasers = fragments.cached(fragments.FRONT_PAGE, lambda: render_teasers(None))
    else:
        teasers = render_teasers(before)
    return render_template("posts/index.html", teasers=Markup(teasers))


def render_teasers(before: str | None) -> str:
    page = paginate(
        litestack.db.session,
        select(Post).where(Post.is_public).options(undefer(Post.comment_count)),
        by=(Post.published_at, Post.id),
        before=before,
        size=POSTS_PER_PAGE,
    )
    return render_template("posts/teasers.html", page=page)


@blueprint.get("/posts/<slug>")
def show(slug: str) -> ResponseReturnValue:
    form = CommentForm() if current_user.is_authenticated else None
    return show_with(find(slug), form)


@blueprint.post("/posts/<slug>/comments")
@login_required
def comment(slug: str) -> ResponseReturnValue:
    post = find(slug)
    form = CommentForm()
    if not form.validate_on_submit():
        return show_with(post, form)
    comment = Comment(post_id=post.id, author_id=current_user.id, body=form.body.data)
    with litestack.db.write() as session:
        session.add(comment)
        session.flush()
        anchor = f"comment-{comment.id}"
        url = url_for(".show", slug=slug, _anchor=anchor, _external=True)
        tasks.tell_author.enqueue(comment.id, url)  # if, and only if, the comment is saved
    live.show_comment(comment)
    return redirect(url_for(".show", slug=slug, _anchor=anchor))


@blueprint.route("/write", methods=["GET", "POST"])
@login_required
def write() -> ResponseReturnValue:
    form = PostForm()
    if form.validate_on_submit():
        post = Post(title=form.title.data, body=form.body.data, author_id=current_user.id)
        with litestack.db.write() as session:
            post.slug = free_slug(session, post.title)
            session.add(post)
            schedule(session, post, form.published_at.data)
        return redirect(url_for(".show", slug=post.slug))
    waiting = select(Post).where(Post.author_id == current_user.id, ~Post.is_public)
    scheduled = litestack.db.session.scalars(waiting.order_by(Post.published_at)).all()
    return render_template("posts/form.html", form=form, post=None, scheduled=scheduled)


@blueprint.route("/posts/<slug>/edit", methods=["GET", "POST"])
@login_required
def edit(slug: str) -> ResponseReturnValue:
    post = find_own(slug)
    form = PostForm(obj=post)
    if post.is_public:
        del form.published_at
    if form.validate_on_submit():
        # The slug stays: links to the post keep working.
        post.title, post.body = form.title.data, form.body.data
        if form.published_at:
            schedule(litestack.db.session, post, form.published_at.data)
        else:
            post.edited_at = now()
        litestack.db.session.commit()
        return redirect(url_for(".show", slug=slug))
    return render_template("posts/form.html", form=form, post=post)


@blueprint.post("/posts/<slug>/delete")
@login_required
def delete(slug: str) -> ResponseReturnValue:
    post = find_own(slug)
    litestack.db.session.delete(post)
    litestack.db.session.commit()
    flash(f"“{post.title}” is deleted.")
    return redirect(url_for(".index"))


@blueprint.post(f"/comments/<{ID}:comment_id>/delete")
@login_required
def delete_comment(comment_id: int) -> ResponseReturnValue:
    comment = litestack.db.session.get(Comment, comment_id) or abort(404)
    if not (comment.belongs_to(current_user) or comment.post.belongs_to(current_user)):
        abort(403)
    slug = comment.post.slug
    litestack.db.session.delete(comment)
    live.remove_comment(comment)  # after the commit
    litestack.db.session.commit()
    flash("The comment is deleted.")
    return redirect(url_for(".show", slug=slug, _anchor="comments"))


def find(slug: str, query: Select[tuple[Post]] = POST_BY_SLUG) -> Post:
    post = litestack.db.session.scalar(query, {"slug": slug})
    if post is None or not post.is_visible_to(current_user):
        abort(404)
    return post


def find_own(slug: str) -> Post:
    post = find(slug)
    if not post.belongs_to(current_user):
        abort(403)
    return post


def show_with(post: Post, form: CommentForm | None) -> ResponseReturnValue:
    since = litestack.cable.last_id()  # before the comments are read: none falls in between
    return render_template(
        "posts/show.html",
        post=post,
        article=article_of(post),
        comments=comments_of(post),
        form=form,
        channel=live.readers.name(post.id),
        since=since,
    )


def article_of(post: Post) -> Markup:
    """Return title and text, from the cache; for their author, who sees more, made anew."""
    if post.belongs_to(current_user):
        return Markup(render_article(post))
    return Markup(fragments.cached(fragments.article(post.id), lambda: newest_article(post.slug)))


def newest_article(slug: str) -> str:
    """Render a post as it is now: the cache knows of changes since it asked for this."""
    return render_article(find(slug, WHOLE_POST_BY_SLUG))


def render_article(post: Post) -> str:
    return render_template("posts/article.html", post=post)


def comments_of(post: Post) -> Markup:
    """Return the comments, from the cache for readers who have nothing to delete there."""
    before = request.args.get("before")
    if before is None and not post.belongs_to(current_user):
        key = fragments.comments(post.id)
        newest = fragments.cached(key, lambda: newest_comments(post))
        if current_user.is_anonymous or current_user.id not in newest.author_ids:
            return Markup(newest.html)
    return Markup(render_comments(post, comments_page(post, before), deletable=True))


def newest_comments(post: Post) -> NewestComments:
    page = comments_page(post, None)
    html = render_comments(post, page, deletable=False)
    return NewestComments(html, {comment.author_id for comment in page.items})


def comments_page(post: Post, before: str | None) -> Page[Comment]:
    return paginate(
        litestack.db.session,
        select(Comment).where(Comment.post_id == post.id),
        by=(Comment.created_at, Comment.id),
        before=before,
        size=COMMENTS_PER_PAGE,
    )


def render_comments(post: Post, page: Page[Comment], *, deletable: bool) -> str:
    """Render comments; if ``deletable``, with buttons at those that the reader may delete."""
    return render_template("posts/comments.html", post=post, comments=page, deletable=deletable)


def schedule(session: Session, post: Post, time: datetime | None) -> None:
    """Publish a post now, or have the worker do it when its time has come."""
    post.published_at = max(time or now(), now())
    post.is_public = post.published_at <= now()
    if not post.is_public:
        session.flush()
        tasks.publish.using(run_after=post.published_at).enqueue(post.id)


def free_slug(session: Session, title: str) -> str:
    """Return a slug that no post has: "title", else "title-2", "title-3" and so on.

    Call it inside ``db.write()``: until that ends nobody else can take the slug.
    """
    wanted = slug_of(title) or "post"
    like = Post.slug.startswith(f"{wanted}-", autoescape=True)
    taken = set(session.scalars(select(Post.slug).where((Post.slug == wanted) | like)))
    numbered = (wanted if n == 1 else f"{wanted}-{n}" for n in count(1))
    return next(slug for slug in numbered if slug not in taken)

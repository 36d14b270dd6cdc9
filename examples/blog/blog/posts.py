"""Posts and their comments."""

from __future__ import annotations

from itertools import count

from flask import Blueprint, abort, flash, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue
from flask_login import current_user, login_required
from flask_wtf import FlaskForm
from slugify import slugify
from sqlalchemy import select
from sqlalchemy.orm import Session, joinedload, undefer
from wtforms import StringField, TextAreaField
from wtforms.validators import DataRequired, Length

from . import litestack
from .models import Comment, Post, now
from .pagination import paginate

blueprint = Blueprint("posts", __name__)

POSTS_PER_PAGE = 10
COMMENTS_PER_PAGE = 50


class PostForm(FlaskForm):
    title = StringField("Title", [DataRequired(), Length(max=150)])
    body = TextAreaField(
        "Text",
        [DataRequired(), Length(max=100_000)],
        description="Markdown: *emphasis*, **strong**, # heading, [link](https://…), > quote.",
        render_kw={"rows": 18},
    )


class CommentForm(FlaskForm):
    body = TextAreaField("Your comment", [DataRequired(), Length(max=5_000)], render_kw={"rows": 4})


@blueprint.get("/")
def index() -> ResponseReturnValue:
    page = paginate(
        litestack.db.session,
        select(Post).options(joinedload(Post.author), undefer(Post.comment_count)),
        by=(Post.published_at, Post.id),
        before=request.args.get("before"),
        size=POSTS_PER_PAGE,
    )
    return render_template("posts/index.html", page=page)


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
    litestack.db.session.add(comment)
    litestack.db.session.commit()
    return redirect(url_for(".show", slug=slug, _anchor=f"comment-{comment.id}"))


@blueprint.route("/write", methods=["GET", "POST"])
@login_required
def write() -> ResponseReturnValue:
    form = PostForm()
    if form.validate_on_submit():
        post = Post(title=form.title.data, body=form.body.data, author_id=current_user.id)
        with litestack.db.write() as session:
            post.slug = free_slug(session, post.title)
            session.add(post)
        return redirect(url_for(".show", slug=post.slug))
    return render_template("posts/form.html", form=form, post=None)


@blueprint.route("/posts/<slug>/edit", methods=["GET", "POST"])
@login_required
def edit(slug: str) -> ResponseReturnValue:
    post = find_own(slug)
    form = PostForm(obj=post)
    if form.validate_on_submit():
        form.populate_obj(post)  # the slug stays: links to the post keep working
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


@blueprint.post("/comments/<int:comment_id>/delete")
@login_required
def delete_comment(comment_id: int) -> ResponseReturnValue:
    comment = litestack.db.session.get(Comment, comment_id) or abort(404)
    if current_user.id not in (comment.author_id, comment.post.author_id):
        abort(403)
    slug = comment.post.slug
    litestack.db.session.delete(comment)
    litestack.db.session.commit()
    flash("The comment is deleted.")
    return redirect(url_for(".show", slug=slug, _anchor="comments"))


def find(slug: str) -> Post:
    post = select(Post).where(Post.slug == slug).options(joinedload(Post.author))
    return litestack.db.session.scalar(post.options(undefer(Post.body_html))) or abort(404)


def find_own(slug: str) -> Post:
    post = find(slug)
    if post.author_id != current_user.id:
        abort(403)
    return post


def show_with(post: Post, form: CommentForm | None) -> ResponseReturnValue:
    comments = paginate(
        litestack.db.session,
        select(Comment).where(Comment.post_id == post.id).options(joinedload(Comment.author)),
        by=(Comment.created_at, Comment.id),
        before=request.args.get("before"),
        size=COMMENTS_PER_PAGE,
    )
    return render_template("posts/show.html", post=post, comments=comments, form=form)


def free_slug(session: Session, title: str) -> str:
    """Return a slug that no post has: "title", else "title-2", "title-3" and so on.

    Call it inside ``db.write()``: until that ends nobody else can take the slug.
    """
    wanted = slugify(title, max_length=80) or "post"
    like = Post.slug.startswith(f"{wanted}-", autoescape=True)
    taken = set(session.scalars(select(Post.slug).where((Post.slug == wanted) | like)))
    numbered = (wanted if n == 1 else f"{wanted}-{n}" for n in count(1))
    return next(slug for slug in numbered if slug not in taken)

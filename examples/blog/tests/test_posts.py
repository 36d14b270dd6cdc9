from __future__ import annotations

import threading
from datetime import UTC, datetime

import pytest
from flask import Flask
from sqlalchemy import select, text

from blog import litestack
from blog.models import Comment, Post, User

from .conftest import Visitor, registered


def test_a_post_is_on_its_page_and_on_the_front_page(ann: Visitor, reader: Visitor) -> None:
    url = ann.publish("Hello, World!", "This is **bold**.")
    assert url == "/posts/hello-world"
    assert "This is <strong>bold</strong>." in reader.see(url)
    assert "This is bold." in reader.see("/")


def test_an_empty_blog_invites_to_write(reader: Visitor) -> None:
    assert "Write the first post." in reader.see("/")


def test_posts_of_one_title_get_slugs_of_their_own(ann: Visitor) -> None:
    assert [ann.publish(title) for title in ("Tea", "Tea", "tea!", "!?", "Tee 茶")] == [
        "/posts/tea",
        "/posts/tea-2",
        "/posts/tea-3",
        "/posts/post",
        "/posts/tee-cha",
    ]


def test_posts_of_one_title_sent_at_once_get_slugs_of_their_own(app: Flask) -> None:
    writers = [registered(app, f"Writer {n}") for n in range(4)]
    barrier, urls = threading.Barrier(4), []

    def write(writer: Visitor) -> None:
        barrier.wait()
        urls.append(writer.publish("Tea"))

    threads = [threading.Thread(target=write, args=(writer,)) for writer in writers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(urls) == ["/posts/tea", "/posts/tea-2", "/posts/tea-3", "/posts/tea-4"]


def test_its_author_edits_a_post_and_the_url_stays(ann: Visitor) -> None:
    url = ann.publish("First", "Before")
    assert "Before" in ann.see(f"{url}/edit")
    assert ann.submit(f"{url}/edit", title="Second", body="After").location == url
    page = ann.see(url)
    assert "Second" in page
    assert "After" in page
    assert "edited" in page
    assert "After" in ann.see("/")


def test_its_author_deletes_a_post_with_its_comments(app: Flask, ann: Visitor) -> None:
    url = ann.publish("Gone")
    ann.comment(url, "Soon gone too")
    ann.submit(f"{url}/delete", page=url)
    assert "“Gone” is deleted." in ann.see("/")
    assert ann.get(url).status_code == 404
    with app.app_context():
        assert litestack.db.session.scalars(select(Comment.id)).all() == []


def test_nobody_else_edits_or_deletes_a_post(ann: Visitor, bob: Visitor, reader: Visitor) -> None:
    url = ann.publish("Mine")
    assert bob.get(f"{url}/edit").status_code == 403
    assert bob.submit(f"{url}/delete", page=url).status_code == 403
    assert reader.get(f"{url}/edit").location.startswith("/login?next=")
    assert "Edit" not in bob.see(url)


def test_a_post_needs_title_and_text(ann: Visitor) -> None:
    page = ann.submit("/write", title="", body="").text
    assert page.count("This field is required.") == 2


def test_a_comment_appears_and_is_counted(ann: Visitor, bob: Visitor, reader: Visitor) -> None:
    url = ann.publish("Post")
    assert bob.comment(url, "I *agree*").location == f"{url}#comment-1"
    assert "I <em>agree</em>" in reader.see(url)
    assert "1 comment<" in reader.see("/")
    bob.comment(url, "Still")
    assert "2 comments<" in reader.see("/")


def test_an_empty_comment_is_refused_on_the_posts_page(ann: Visitor) -> None:
    url = ann.publish("Post")
    page = ann.comment(url, " ").text
    assert "This field is required." in page
    assert "Post</h1>" in page


def test_a_comment_is_deleted_by_its_author_or_the_posts(
    ann: Visitor, bob: Visitor, app: Flask
) -> None:
    url = ann.publish("Post")
    for body in ("one", "two"):
        bob.comment(url, body)
    carol = registered(app, "Carol")
    assert carol.submit("/comments/1/delete", page=url).status_code == 403
    assert bob.submit("/comments/1/delete", page=url).location == f"{url}#comments"
    assert ann.submit("/comments/2/delete", page=url).location == f"{url}#comments"
    assert "No comments yet." in ann.see(url)


def test_a_comment_of_an_id_that_no_row_can_have_is_not_found(ann: Visitor) -> None:
    assert ann.submit(f"/comments/{2**63}/delete", page="/").status_code == 404


def test_who_wants_to_comment_logs_in_first(ann: Visitor, reader: Visitor) -> None:
    url = ann.publish("Post")
    assert f"/login?next={url}" in reader.see(url)
    assert reader.log_in("Ann", url=f"/login?next={url}").location == url


@pytest.mark.parametrize("at_once", [True, False])
def test_pages_of_posts_leave_out_and_repeat_none(
    app: Flask, reader: Visitor, at_once: bool
) -> None:
    with app.app_context(), litestack.db.write() as session:
        session.add(User(id=1, name="Ann", email="ann@example.com", password_hash="!"))
        session.flush()
        for n in range(25):
            time = datetime(2030, 1, 1 if at_once else 1 + n, tzinfo=UTC)
            post = Post(author_id=1, slug=f"p{n}", title=f"<{n}>", body="x", published_at=time)
            session.add(post)
    url, titles = "/", []
    while url:
        page = reader.see(url)
        titles += [n for n in reversed(range(25)) if f"&lt;{n}&gt;" in page]
        _, _, link = page.partition('rel="next" href="')
        url = link.partition('"')[0]
    assert titles == list(reversed(range(25)))


def test_older_comments_are_on_the_next_page(app: Flask, ann: Visitor) -> None:
    url = ann.publish("Post")
    with app.app_context(), litestack.db.write() as session:
        for n in range(60):
            session.add(Comment(post_id=1, author_id=1, body=f"number {n}."))
    page = ann.see(url)
    assert "number 59." in page
    assert "number 9." not in page
    older = page.partition('rel="next" href="')[2].partition('"')[0].replace("&amp;", "&")
    assert older.endswith("#comments")
    assert "number 9." in ann.see(older)


@pytest.mark.parametrize("mark", ["", "x", "1", "1-2-3", f"{10**30}-1", "-1-1", f"1-{2**63}"])
def test_a_mark_that_is_none_is_not_found(reader: Visitor, mark: str) -> None:
    assert reader.get(f"/?before={mark}").status_code == 404


def test_a_post_of_a_removed_user_goes_with_them(app: Flask, ann: Visitor) -> None:
    ann.publish("Post")
    with app.app_context(), litestack.db.write() as session:
        session.delete(session.get(User, 1))
    with app.app_context():
        assert litestack.db.session.scalars(select(Post.id)).all() == []


def test_times_come_back_in_utc(app: Flask, ann: Visitor) -> None:
    ann.publish("Post")
    with app.app_context():
        assert litestack.db.session.scalar(select(Post.published_at)).tzinfo is UTC


PAGE = """
    EXPLAIN QUERY PLAN SELECT id FROM post
    WHERE (published_at, id) < (1, 2) ORDER BY published_at DESC, id DESC LIMIT 11
"""


def test_a_deep_page_is_found_by_the_index(app: Flask) -> None:
    with app.app_context():
        plan = litestack.db.session.execute(text(PAGE)).all()
    assert len(plan) == 1
    assert "INDEX ix_post_published_at_id (published_at<?)" in plan[0][-1]

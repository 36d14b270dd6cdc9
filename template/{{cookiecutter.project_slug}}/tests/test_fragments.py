from __future__ import annotations

import re
import threading

import pytest
from flask import Flask
from sqlalchemy import event

from {{ cookiecutter.__package }} import fragments, litestack, posts
from {{ cookiecutter.__package }}.models import Post, User

from .conftest import Visitor


def queries(app: Flask, reader: Visitor, url: str) -> list[str]:
    """Return the SELECTs that a page costs."""
    found: list[str] = []
    with app.app_context():
        engine = litestack.db.engine

    def note(connection: object, cursor: object, statement: str, *rest: object) -> None:
        found.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    reader.see(url)
    event.remove(engine, "before_cursor_execute", note)
    return found


def test_a_cached_page_reads_next_to_nothing(app: Flask, ann: Visitor, reader: Visitor) -> None:
    url = ann.publish("Tea", "Some **strong** tea.")
    first = [reader.see("/"), reader.see(url)]
    assert queries(app, reader, "/") == []
    (query,) = queries(app, reader, url)  # is there such a post, and may it be seen?
    assert "body" not in query
    assert reader.see("/") == first[0]
    assert "<strong>strong</strong>" in reader.see(url)


def test_a_change_shows_at_once(ann: Visitor, bob: Visitor, reader: Visitor) -> None:
    url = ann.publish("Tea", "Before.")
    pages = ("/", url)
    assert all("Before." in reader.see(page) for page in pages)
    ann.submit(f"{url}/edit", title="Tea", body="After.")
    assert all("After." in reader.see(page) for page in pages)
    bob.comment(url, "Milk?")
    assert "1 comment<" in reader.see("/")
    assert "Milk?" in reader.see(url)
    bob.submit("/comments/1/delete", page=url)
    assert "1 comment<" not in reader.see("/")
    assert "Milk?" not in reader.see(url)
    ann.submit(f"{url}/delete", page=url)
    assert "After." not in reader.see("/")


def test_a_change_that_is_rolled_back_forgets_nothing(
    app: Flask, ann: Visitor, reader: Visitor
) -> None:
    ann.publish("Tea", "Some tea.")
    reader.see("/")
    with app.app_context():
        litestack.db.session.get(Post, 1).title = "Coffee"
        litestack.db.session.flush()
        litestack.db.session.rollback()
        assert litestack.cache.has(fragments.FRONT_PAGE)


def test_what_its_author_sees_is_not_shown_to_others(ann: Visitor, reader: Visitor) -> None:
    url = ann.publish("Tea")
    ann.comment(url, "Mine")
    for visitor, buttons in ((ann, True), (reader, False), (ann, True), (reader, False)):
        page = visitor.see(url)
        assert ("/edit" in page) is buttons
        assert ("/comments/1/delete" in page) is buttons


def test_who_is_logged_in_reads_the_comments_from_the_cache(
    app: Flask, ann: Visitor, bob: Visitor
) -> None:
    url = ann.publish("Tea")
    ann.comment(url, "Milk?")
    assert "Milk?" in bob.see(url)
    assert not any("comment" in query for query in queries(app, bob, url))
    assert "Milk?" in bob.see(url)
    bob.comment(url, "Never.")
    for visitor, buttons in ((bob, 1), (ann, 2), (bob, 1)):
        assert visitor.see(url).count("/delete") == buttons


def test_a_form_with_an_error_leaves_the_links_of_the_cached_comments_alone(
    ann: Visitor, bob: Visitor, reader: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(posts, "COMMENTS_PER_PAGE", 1)
    url = ann.publish("Tea")
    ann.comment(url, "First")
    token = re.search(r'name="csrf_token"[^>]* value="([^"]+)"', bob.see(url))
    ann.comment(url, "Second")
    empty = bob.client.post(f"{url}/comments", data={"csrf_token": token and token[1]})
    assert "Second" in empty.text  # put into the cache by this request
    assert f'rel="next" href="{url}?before=' in reader.see(url)


@pytest.mark.parametrize(
    ("name", "value", "status"), [("title", "Coffee", 200), ("is_public", False, 404)]
)
def test_a_change_while_a_page_is_made_is_not_hidden_by_the_cache(
    app: Flask, ann: Visitor, reader: Visitor, name: str, value: object, status: int
) -> None:
    """It comes after the look for the post, and before that for its text in the cache."""
    url = ann.publish("Tea")
    changes = [(name, value)]

    def change() -> None:
        with app.app_context():
            setattr(litestack.db.session.get(Post, 1), *changes.pop())
            litestack.db.session.commit()

    def found(connection: object, cursor: object, statement: str, *rest: object) -> None:
        if changes and "WHERE post.slug" in statement:
            other = threading.Thread(target=change)
            other.start()
            other.join()

    with app.app_context():
        event.listen(litestack.db.engine, "after_cursor_execute", found)
    for _ in range(2):
        page = reader.get(url)
        assert page.status_code == status
        assert "Tea</h1>" not in page.text
    assert changes == []


def test_a_removed_user_is_gone_from_the_front_page(
    app: Flask, ann: Visitor, reader: Visitor
) -> None:
    ann.publish("Tea")
    reader.see("/")
    with app.app_context(), litestack.db.write() as session:
        session.delete(session.get(User, 1))
    assert "Tea" not in reader.see("/")


def test_the_comments_of_a_removed_user_are_gone_from_the_posts_of_others(
    app: Flask, ann: Visitor, bob: Visitor, reader: Visitor
) -> None:
    url = ann.publish("Tea")
    bob.comment(url, "Rude words")
    ann.comment(url, "Well")
    assert "Rude words" in reader.see(url)
    with app.app_context(), litestack.db.write() as session:
        session.delete(session.get(User, 2))
    assert "Rude words" not in reader.see(url)
    assert "Well" in reader.see(url)


@pytest.mark.parametrize("name", ["", "Bob"])
@pytest.mark.parametrize("path", ["/", "/posts/number"])
def test_no_page_is_older_than_the_last_edit_before_it_was_asked_for(
    app: Flask, ann: Visitor, bob: Visitor, path: str, name: str
) -> None:
    """Readers who fill the cache race a writer who empties it."""
    ann.publish("Number", "Edition 0.")
    newest, stale, seen = 0, [], set()
    done = threading.Event()

    def read(reader: Visitor) -> None:
        while not done.is_set():
            least = newest
            found = int(re.findall(r"Edition (\d+)\.", reader.see(path))[-1])
            seen.add(found)
            if found < least:
                stale.append((found, least))

    visitors = [Visitor(app.test_client()) for _ in range(3)]
    for visitor in visitors:
        if name:
            visitor.log_in(name)
    readers = [threading.Thread(target=read, args=(visitor,)) for visitor in visitors]
    for thread in readers:
        thread.start()
    try:
        for edition in range(1, 40):
            with app.app_context():
                litestack.db.session.get(Post, 1).body = f"Edition {edition}."
                litestack.db.session.commit()
            newest = edition
    finally:
        done.set()
        for thread in readers:
            thread.join()
    assert stale == []
    assert len(seen) > 5  # they did race

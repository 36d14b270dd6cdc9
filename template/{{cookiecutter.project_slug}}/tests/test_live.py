from __future__ import annotations

import re

import pytest
from flask import Flask
from flask_login import login_user
from sqlalchemy import text

from {{ cookiecutter.__package }} import litestack, live
from {{ cookiecutter.__package }}.models import User

from .conftest import Visitor


def sent(app: Flask) -> int:
    """Return the id of the last message that went out to open pages."""
    with app.app_context():
        return litestack.cable.last_id()


def test_a_page_says_from_which_message_on_it_must_be_told(
    app: Flask, ann: Visitor, reader: Visitor
) -> None:
    url = ann.publish("Tea")
    ann.comment(url, "One")
    page = reader.see(url)
    since = re.search(r'data-cable="posts/1" data-cable-since="(\d+)"', page)
    assert since
    assert int(since[1]) == sent(app)
    assert 'data-cable-count="posts/1"' in page


def test_a_comment_and_its_removal_are_sent_once_they_are_saved(app: Flask, ann: Visitor) -> None:
    url = ann.publish("Tea")
    ann.comment(url, " ")
    before = sent(app)
    ann.comment(url, "One")
    after = sent(app)
    assert after == before + 1
    ann.submit("/comments/1/delete", page=url)
    assert sent(app) == after + 1


def test_a_comment_that_cannot_be_saved_is_not_sent(app: Flask, ann: Visitor) -> None:
    url = ann.publish("Tea")
    before = sent(app)
    app.config["PROPAGATE_EXCEPTIONS"] = False
    with app.app_context():
        refuse = "CREATE TRIGGER no BEFORE INSERT ON comment BEGIN SELECT RAISE(ABORT, 'no'); END"
        litestack.db.session.execute(text(refuse))
        litestack.db.session.commit()
    assert ann.comment(url, "One").status_code == 500
    assert sent(app) == before


@pytest.mark.parametrize(("name", "allowed"), [("Ann", True), ("Bob", False), (None, False)])
def test_who_may_not_see_a_post_may_not_follow_it(
    app: Flask, ann: Visitor, bob: Visitor, name: str | None, allowed: bool
) -> None:
    ann.submit("/write", title="Later", body="Wait.", published_at="2999-01-01T08:00")
    with app.test_request_context():
        if name:
            login_user(litestack.db.session.query(User).filter_by(name=name).one())
        assert live.readers(1) is allowed
        assert live.readers(2) is False

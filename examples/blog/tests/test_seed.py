from __future__ import annotations

import pytest
from flask import Flask
from sqlalchemy import func, select

from blog import litestack
from blog.models import Comment, Post, User
from blog.seed import EMAIL, PASSWORD

from .conftest import Visitor


def test_seeding_twice_adds_nothing_twice(app: Flask) -> None:
    def counts() -> list[int | None]:
        with app.app_context():
            return [
                litestack.db.session.scalar(select(func.count()).select_from(table))
                for table in (User, Post, Comment)
            ]

    first = app.test_cli_runner().invoke(args=["seed"])
    assert first.exit_code == 0, first.output
    assert f"Log in as {EMAIL} with {PASSWORD}" in first.output
    after_first = counts()
    assert min(filter(None, after_first)) >= 5
    assert app.test_cli_runner().invoke(args=["seed"]).output.startswith("0 posts added.")
    assert counts() == after_first


def test_the_demo_login_works(app: Flask, reader: Visitor) -> None:
    app.test_cli_runner().invoke(args=["seed"])
    assert reader.submit("/login", email=EMAIL, password=PASSWORD).location == "/"
    assert 'rel="next"' in reader.see("/")


def test_a_public_server_gets_no_password_that_everyone_knows(
    app: Flask, reader: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLY_APP_NAME", "blog")
    refused = app.test_cli_runner().invoke(args=["seed"])
    assert refused.exit_code == 2
    assert "--password" in refused.output
    app.test_cli_runner().invoke(args=["seed", "--password", "known to me only"])
    assert reader.submit("/login", email=EMAIL, password="known to me only").location == "/"

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from flask_litestack.testing import JobTester
from werkzeug.test import TestResponse

from blog import create_app, migrate

PASSWORD = "correct horse battery"


@pytest.fixture
def app(tmp_path: Path) -> Flask:
    """An app on an empty database, brought up by its real migrations."""
    app = create_app({"TESTING": True, "LITESTACK_DATA_PATH": str(tmp_path / "data")})
    with app.app_context():
        migrate.run_pending()
    return app


@pytest.fixture
def reader(app: Flask) -> Visitor:
    """Somebody who is not logged in."""
    return Visitor(app.test_client())


@pytest.fixture
def ann(app: Flask) -> Visitor:
    return registered(app, "Ann")


@pytest.fixture
def bob(app: Flask) -> Visitor:
    return registered(app, "Bob")


@pytest.fixture
def jobs(app: Flask) -> JobTester:
    """Runs what was enqueued, when a test says so."""
    return JobTester(app)


class Visitor:
    """Uses the site as a browser does: sends each form with the hidden token of its page."""

    def __init__(self, client: FlaskClient) -> None:
        self.client = client

    def get(self, url: str) -> TestResponse:
        return self.client.get(url, buffered=True)

    def see(self, url: str) -> str:
        response = self.get(url)
        assert response.status_code == 200, response.status
        return response.text

    def submit(self, url: str, *, page: str | None = None, **fields: Any) -> TestResponse:
        """Open ``page`` (by default the form's own URL), fill in its form and send it."""
        token = re.search(r'name="csrf_token"[^>]* value="([^"]+)"', self.get(page or url).text)
        return self.client.post(url, data={**fields, "csrf_token": token[1] if token else ""})

    def register(self, name: str, password: str = PASSWORD) -> TestResponse:
        return self.submit("/register", name=name, email=address(name), password=password)

    def log_in(self, name: str, password: str = PASSWORD, url: str = "/login") -> TestResponse:
        return self.submit(url, email=address(name), password=password)

    def publish(self, title: str, body: str = "Some text.") -> str:
        """Write a post and return its URL."""
        return self.submit("/write", title=title, body=body).location

    def comment(self, post: str, body: str) -> TestResponse:
        return self.submit(f"{post}/comments", page=post, body=body)


def address(name: str) -> str:
    return f"{name.replace(' ', '.')}@example.com"


def registered(app: Flask, name: str) -> Visitor:
    visitor = Visitor(app.test_client())
    visitor.register(name)
    return visitor

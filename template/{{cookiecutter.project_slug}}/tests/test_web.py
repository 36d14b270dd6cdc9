from __future__ import annotations

from io import BytesIO
from pathlib import Path

import pytest
from flask import Flask, request
from sqlalchemy import text

from {{ cookiecutter.__package }} import create_app, litestack

from .conftest import Visitor


@pytest.mark.parametrize("url", ["/write", "/login", "/register", "/posts/x/comments", "/logout"])
def test_a_form_without_its_token_is_refused_with_a_hint(ann: Visitor, url: str) -> None:
    response = ann.client.post(url, data={"title": "x", "body": "x"})
    assert response.status_code == 400
    assert "reload the page" in response.text


@pytest.mark.parametrize("url", ["/", "/login", "/up", "/nowhere", "/static/blog.css"])
def test_every_response_has_the_security_headers(reader: Visitor, url: str) -> None:
    headers = reader.get(url).headers
    assert "default-src 'self'" in headers["Content-Security-Policy"]
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"


def test_pages_have_no_inline_script_or_style(ann: Visitor) -> None:
    post = ann.publish("Post", "<b style='color:red'>x</b>\n\n|a|\n|:-:|\n|b|")
    for url in ("/", "/login", "/register", "/write", post, f"{post}/edit", "/nowhere"):
        page = ann.get(url).text
        assert page.count("<script") == page.count('<script src="/')
        assert "<style" not in page
        assert " style=" not in page.replace("&lt;b style=", "")


def test_a_reader_who_only_reads_gets_no_cookie(ann: Visitor, reader: Visitor) -> None:
    post = ann.publish("Post")
    for url in ("/", post):
        assert "Set-Cookie" not in reader.get(url).headers


def test_a_missing_page_says_so(reader: Visitor) -> None:
    response = reader.get("/nowhere")
    assert response.status_code == 404
    assert "Not Found" in response.text
    assert "To the front page" in response.text


def test_a_failure_has_a_page_that_needs_no_database(app: Flask, ann: Visitor) -> None:
    app.config["PROPAGATE_EXCEPTIONS"] = False
    with app.app_context():
        for table in ("comment", "post", "user"):
            litestack.db.session.execute(text(f"DROP TABLE {table}"))
        litestack.db.session.commit()
    response = ann.get("/")
    assert response.status_code == 500
    assert "Something went wrong on our side." in response.text


def test_up_tells_more_to_who_knows_the_token(app: Flask, reader: Visitor) -> None:
    assert reader.see("/up") == "up\n"
    assert reader.get("/up?verbose").status_code == 401


@pytest.mark.parametrize("field", ["title", "body", "published_at"])
def test_a_file_in_place_of_a_text_is_as_none(ann: Visitor, field: str) -> None:
    file = (BytesIO(b"x"), "x.txt")
    response = ann.submit("/write", **{"title": "x", "body": "x", field: file})
    assert response.status_code == (302 if field == "published_at" else 200)


def test_too_long_a_text_is_refused(ann: Visitor) -> None:
    assert ann.submit("/write", title="x", body="x" * 2**21).status_code == 413


FORGED = {"X-Forwarded-For": "6.6.6.6", "X-Forwarded-Proto": "https"}
BY_FLY = {"X-Forwarded-For": "6.6.6.6, 1.2.3.4, 5.5.5.5", "X-Forwarded-Proto": "https"}


def test_forwarded_headers_are_ignored_where_no_proxy_is_known(tmp_path: Path) -> None:
    assert seen_by(tmp_path, FORGED) == ("127.0.0.1", "http")


def test_on_fly_the_reader_is_who_its_proxy_saw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLY_APP_NAME", "blog")
    assert seen_by(tmp_path, BY_FLY) == ("1.2.3.4", "https")


def seen_by(data_path: Path, headers: dict[str, str]) -> tuple[str | None, str]:
    app = create_app({"LITESTACK_DATA_PATH": str(data_path)})
    seen = []
    app.before_request(lambda: seen.append((request.remote_addr, request.scheme)))
    app.test_client().get("/login", headers=headers)
    return seen[0]

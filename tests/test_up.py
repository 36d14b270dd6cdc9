"""``litestack.up()``: what a host and what an administrator are told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, Response
from flask.testing import FlaskClient

from flask_litestack import Litestack, backups
from flask_litestack.sqlite import driver

from .disks import fill, small_disk

TOKEN = {"Authorization": "Bearer open sesame"}


@pytest.fixture
def client(app: Flask, litestack: Litestack) -> FlaskClient:
    @app.get("/up")
    def up() -> Response:
        return litestack.up()

    return app.test_client()


@pytest.fixture
def app(tmp_path: Path, litestack: Litestack) -> Iterator[Flask]:
    yield from serving(tmp_path / "data", litestack)


def serving(data_path: Path, litestack: Litestack) -> Iterator[Flask]:
    """An app with a database and a token."""
    app = Flask("shop")
    app.config["LITESTACK_DATA_PATH"] = data_path
    app.config["LITESTACK_UP_TOKEN"] = "open sesame"
    litestack.init_app(app)
    with app.app_context():
        litestack.db.create_all()
    yield app
    with app.app_context():
        litestack.db.engine.dispose()


def verbose(client: FlaskClient) -> tuple[str, dict[str, Any]]:
    """The status, and the checks by name."""
    response = client.get("/up?verbose", headers=TOKEN)
    assert response.status_code == 200, response.text
    told = response.get_json()
    return told["status"], {check["check"]: check for check in told["checks"]}


def test_it_is_up_while_the_database_can_be_read(client: FlaskClient) -> None:
    response = client.get("/up")

    assert (response.status_code, response.text) == (200, "up\n")
    assert response.headers["Cache-Control"] == "no-store"


def test_it_is_not_up_when_the_database_cannot_be_read(
    app: Flask, litestack: Litestack, client: FlaskClient, caplog: pytest.LogCaptureFixture
) -> None:
    with app.app_context():
        path = litestack.db.path
        litestack.db.engine.dispose()  # a connection goes on with the schema that it has read
    change_schema(path, "'nonsense ' || sql")

    response = client.get("/up")

    assert response.status_code == 503
    assert "nonsense" not in response.text
    assert "malformed database schema" in caplog.text
    change_schema(path, "substr(sql, length('nonsense ') + 1)")
    assert client.get("/up").status_code == 200


def change_schema(path: Path, sql: str) -> None:
    """Do to the table ``post`` what nobody should do."""
    connection = driver.module.connect(path)
    connection.execute("PRAGMA writable_schema = ON")
    connection.execute(f"UPDATE sqlite_schema SET sql = {sql} WHERE name = 'post'")
    connection.commit()
    connection.close()


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer open"},
        {"Authorization": "Bearer"},
        {"Authorization": "open sesame"},
        {"Authorization": "Basic b3BlbiBzZXNhbWU6"},
        {"Authorization": "Bearer öpen"},
    ],
)
def test_more_is_told_only_to_those_who_know_the_token(
    client: FlaskClient, headers: dict[str, str]
) -> None:
    response = client.get("/up?verbose", headers=headers)

    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == "Bearer"
    assert "GB" not in response.text


@pytest.mark.parametrize("given", ["None", ""])
def test_without_a_token_nobody_is_told_more(tmp_path: Path, given: str) -> None:
    app, litestack = Flask("shop"), Litestack()
    app.config["LITESTACK_DATA_PATH"] = tmp_path / "other"
    litestack.init_app(app)
    app.add_url_rule("/up", view_func=litestack.up)

    headers = {"Authorization": f"Bearer {given}"}

    assert app.test_client().get("/up?verbose", headers=headers).status_code == 401


def test_what_is_not_quite_well_is_degraded_but_up(
    app: Flask, litestack: Litestack, client: FlaskClient
) -> None:
    @litestack.task()
    def mail() -> None:
        pass

    status, checks = verbose(client)
    assert status == "degraded"
    assert checks["backup"]["what"] == "No backup is known of."

    with app.app_context():
        litestack.backup()
    status, checks = verbose(client)
    assert status == "ok"
    assert checks["backup"]["severity"] == "ok"

    with app.app_context():
        mail.enqueue()
    status, checks = verbose(client)
    assert status == "degraded"
    assert checks["jobs"]["what"].startswith("No worker runs")
    assert "flask litestack worker" in checks["jobs"]["fix"]


def test_a_backup_of_three_days_ago_is_too_old(
    app: Flask, litestack: Litestack, client: FlaskClient
) -> None:
    with app.app_context():
        litestack.backup()
        note = litestack.settings.data_path / backups.LAST
    content = json.loads(note.read_text())
    content["created_at"] = (datetime.now(UTC) - timedelta(days=3)).isoformat()
    note.write_text(json.dumps(content))

    status, checks = verbose(client)

    assert status == "degraded"
    assert checks["backup"]["what"].startswith("The last backup is 72 hours old")


def test_a_litestream_that_does_not_run_is_no_backup(tmp_path: Path, litestack: Litestack) -> None:
    app = Flask("shop")
    app.config["LITESTACK_DATA_PATH"] = tmp_path / "data"
    app.config["LITESTACK_LITESTREAM_URL"] = "s3://bucket/shop"
    litestack.init_app(app)
    with app.app_context():
        litestack.db.create_all()

        [found] = backups.check(litestack.settings, litestack.db)

        litestack.db.engine.dispose()
    assert found.severity == "warning"
    assert "s3://bucket/shop" in found.what
    assert "litestream run" in found.fix


def test_a_full_disk_is_degraded_but_up(tmp_path: Path, litestack: Litestack) -> None:
    with small_disk(tmp_path, 2 * 1024 * 1024) as disk:
        for app in serving(disk / "data", litestack):
            app.add_url_rule("/up", view_func=litestack.up)
            client = app.test_client()
            fill(disk / "ballast")

            assert client.get("/up").status_code == 200
            status, checks = verbose(client)

            assert status == "degraded"
            assert checks["disk"]["severity"] == "error"

"""The page by which a host sees whether the app is well, and what is not quite well.

A host takes a server whose check fails out of its routing, or restarts it. The only server should
be neither for a full disk or a missing job worker: it can show pages still. So the page fails
only if the database cannot be read; the rest is *degraded*, told by ``status`` and to those who
know the token.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from flask import Response, jsonify, request
from sqlalchemy.exc import SQLAlchemyError

from . import backups
from .errors import LitestackError
from .jobs import health as jobs_health
from .sqlite import driver, health
from .sqlite.health import Finding, Severity

if TYPE_CHECKING:
    from .extension import Litestack

log = logging.getLogger("flask_litestack")

_ERRORS = (LitestackError, SQLAlchemyError, driver.Error, OSError)


def answer(litestack: Litestack) -> Response:
    """Answer the request: 200, 401 for a wrong token, or 503 if the database cannot be read."""
    try:
        _read(litestack)
    except _ERRORS:
        log.exception("The check of %s failed: the database cannot be read.", request.path)
        return _plain("The database cannot be read; the log says why.\n", 503)
    if "verbose" not in request.args:
        return _plain("up\n", 200)
    if not _is_allowed(litestack.settings.up_token):
        refused = _plain("This needs the header Authorization: Bearer LITESTACK_UP_TOKEN.\n", 401)
        refused.headers["WWW-Authenticate"] = "Bearer"
        return refused
    found = list(checks(litestack))
    response = jsonify(
        status="degraded" if any(map(_is_bad, found)) else "ok",
        checks=[asdict(finding) for finding in found],
    )
    response.headers["Cache-Control"] = "no-store"
    return response


def degraded(litestack: Litestack) -> list[str]:
    """Say what is not well though the app can serve pages: a sentence each."""
    return [finding.what for finding in checks(litestack) if _is_bad(finding)]


def checks(litestack: Litestack) -> Iterator[Finding]:
    """Look at the disk, the jobs and the age of the last backup: a few milliseconds of work."""
    settings = litestack.settings
    if not settings.data_path.is_dir():
        return
    looks: dict[str, Callable[[], Iterable[Finding]]] = {
        "disk": lambda: [health.check_space(litestack.db.files(settings.data_path))],
        "jobs": lambda: jobs_health.findings(litestack.jobs, settings),
        "backup": lambda: _look_at_backup(litestack),
    }
    for name, look in looks.items():
        try:
            yield from look()
        except _ERRORS as error:
            yield Finding(name, Severity.ERROR, str(getattr(error, "orig", error)))


def _look_at_backup(litestack: Litestack) -> Iterator[Finding]:
    if not litestack.db.why_no_file():
        yield from backups.check(litestack.settings, litestack.db)


def _read(litestack: Litestack) -> None:
    """Read from the file itself: SQLite answers ``SELECT 1`` without it."""
    with litestack.db.engine.connect() as connection:
        sqlite = connection.dialect.name == "sqlite"
        connection.exec_driver_sql("SELECT count(*) FROM sqlite_schema" if sqlite else "SELECT 1")


def _is_allowed(token: str | None) -> bool:
    given = request.authorization
    if not token or given is None or given.type != "bearer" or given.token is None:
        return False
    return hmac.compare_digest(given.token.encode(), token.encode())


def _is_bad(finding: Finding) -> bool:
    return finding.severity is not Severity.OK


def _plain(text: str, status: int) -> Response:
    headers: dict[str, Any] = {"Cache-Control": "no-store"}
    return Response(text, status, headers, mimetype="text/plain")

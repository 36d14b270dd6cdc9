"""What every request and response has in common."""

from __future__ import annotations

import os
from datetime import datetime

from flask import Flask, Response, request
from werkzeug.middleware.proxy_fix import ProxyFix

#: No script or style but our own files; pictures in posts may come from anywhere.
CONTENT_SECURITY_POLICY = "; ".join(
    [
        "default-src 'self'",
        "img-src 'self' https: data:",
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    ]
)


def init_app(app: Flask) -> None:
    if "FLY_APP_NAME" in os.environ:
        _trust_fly(app)
    app.after_request(_add_security_headers)
    app.add_template_filter(_date, "date")
    app.add_template_filter(_moment, "moment")


def _trust_fly(app: Flask) -> None:
    """Take the reader's address and scheme from Fly's proxy.

    Only on Fly, where nobody else can reach the app: anywhere else these headers can be forged.
    Fly appends two addresses to X-Forwarded-For, the reader's and the app's own.
    """
    app.wsgi_app = ProxyFix(app.wsgi_app, x_for=2, x_proto=1)  # type: ignore[method-assign]
    app.config["SESSION_COOKIE_SECURE"] = True


def _add_security_headers(response: Response) -> Response:
    response.headers["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "same-origin"
    response.headers["Cross-Origin-Opener-Policy"] = "same-origin"
    if request.is_secure:
        response.headers["Strict-Transport-Security"] = "max-age=31536000"
    return response


def _date(time: datetime) -> str:
    return f"{time.day} {time:%B %Y}"


def _moment(time: datetime) -> str:
    return f"{_date(time)}, {time:%H:%M} UTC"

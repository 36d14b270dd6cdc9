"""Error pages."""

from __future__ import annotations

from flask import Flask, current_app, render_template
from flask_wtf.csrf import CSRFError
from werkzeug.exceptions import HTTPException


def init_app(app: Flask) -> None:
    app.register_error_handler(CSRFError, _expired_form)
    app.register_error_handler(HTTPException, _page)


def _expired_form(error: CSRFError) -> tuple[str, int]:
    text = "This form is no longer valid. Go back, reload the page and send it again."
    return render_template("error.html", title="Please try again", text=text), 400


def _page(error: HTTPException) -> tuple[str, int] | HTTPException:
    if error.code is None or error.code < 400:
        return error  # a redirect
    if error.code < 500:
        return render_template("error.html", title=error.name, text=error.description), error.code
    # The database may be what failed, so this page is rendered without asking it who is reading.
    page = current_app.jinja_env.get_template("failure.html")
    return page.render(title=error.name), error.code

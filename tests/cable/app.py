"""The app of the process and browser tests; run it with gunicorn."""

from __future__ import annotations

import os
import time

from flask import Flask, Response, make_response, render_template_string, request

from flask_litestack import Litestack

PAGE = """<!doctype html><title>Comments</title>
<script>window.fired = []; document.addEventListener("cable:missed", e => fired.push(e.type))
document.addEventListener("cable:open", e => fired.push("open"))</script>
{{ cable_script() }}
<p hidden><b data-cable-count="posts/7"></b> online</p>
<ol id="comments" data-cable="posts/7" data-cable-since="{{ since }}">
{% for number, text in comments %}{% include "comment.html" %}{% endfor %}
</ol>
"""

litestack = Litestack()


@litestack.cable.connect
def who() -> object:
    return request.args.get("user")


@litestack.channel("posts/<int:post_id>", presence="count")
def posts(post_id: int) -> bool:
    return True


@posts.on_message
def said(data: object, post_id: int) -> None:
    posts.broadcast(data, post_id=post_id)


@litestack.channel("numbers")
def numbers() -> bool:
    return True


def create_app() -> Flask:
    from jinja2 import DictLoader

    app = Flask(__name__)
    app.config.from_prefixed_env()
    app.jinja_env.loader = DictLoader({"comment.html": '<li id="c{{ number }}">{{ text }}</li>'})
    litestack.init_app(app)

    @app.get("/")
    def index() -> Response:
        since = litestack.cable.last_id()
        response = make_response(render_template_string(PAGE, since=since, comments=read()))
        if "csp" in request.args:
            response.headers["Content-Security-Policy"] = (
                "default-src 'none'; script-src 'self'; connect-src 'self'"
            )
        return response

    @app.post("/comments")
    def comment() -> str:
        text = request.form["text"]
        with litestack.db.write() as session:
            connection = session.connection()
            connection.exec_driver_sql("INSERT INTO comment (text) VALUES (?)", (text,))
            number = connection.exec_driver_sql("SELECT last_insert_rowid()").scalar()
            litestack.cable.render(
                "posts/7", "comment.html", target="#comments", number=number, text=text
            )
        return "ok"

    @app.post("/broadcast/<int:writer>/<int:count>")
    def broadcast(writer: int, count: int) -> str:
        for number in range(count):
            numbers.broadcast([writer, number])
        return str(os.getpid())

    @app.get("/pid")
    def pid() -> str:
        return str(os.getpid())

    @app.get("/sleep/<float:seconds>")
    def sleep(seconds: float) -> str:
        time.sleep(seconds)
        return "slept"

    def read() -> list[tuple[int, str]]:
        found = litestack.db.session.connection().exec_driver_sql("SELECT id, text FROM comment")
        return [tuple(row) for row in found]  # type: ignore[misc]

    with app.app_context():
        connection = litestack.db.connect()
        connection.execute("CREATE TABLE IF NOT EXISTS comment (id INTEGER PRIMARY KEY, text TEXT)")
        connection.commit()
        connection.close()
    return app

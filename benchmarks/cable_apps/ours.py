"""The cable, in a small app that also computes and uses its database."""

from __future__ import annotations

import os
import time

from flask import Flask
from sqlalchemy import text

from flask_litestack import Litestack

litestack = Litestack()


@litestack.channel("posts/<int:post_id>")
def posts(post_id: int) -> bool:
    return True


def create_app() -> Flask:
    app = Flask(__name__)
    app.config["LITESTACK_DATA_PATH"] = os.environ["BENCH_DATA"]
    litestack.init_app(app)

    @app.post("/publish/<word>")
    def publish(word: str) -> str:
        posts.broadcast({"t": time.monotonic(), "word": word, "x": "x" * 100}, post_id=7)
        return "ok"

    @app.get("/work")
    def work() -> str:
        """Read some rows and change one, as a page with a form does."""
        with litestack.db.write() as session:
            for key in range(1, 6):
                session.execute(text("SELECT text FROM item WHERE id = :id"), {"id": key}).scalar()
            session.execute(text("UPDATE item SET n = n + 1 WHERE id = 1"))
        return "<p>" + "done " * 200 + "</p>"

    @app.get("/burn/<float:seconds>")
    def burn(seconds: float) -> str:
        """Keep one thread busy with Python code."""
        end = time.monotonic() + seconds
        total = 0
        while time.monotonic() < end:
            for number in range(1000):
                total += number * number
        return str(total)

    @app.get("/up")
    def up() -> str:
        return "up"

    with app.app_context():
        connection = litestack.db.connect()
        connection.execute("CREATE TABLE IF NOT EXISTS item (id INTEGER PRIMARY KEY, text, n)")
        connection.executemany(
            "INSERT OR IGNORE INTO item VALUES (?, ?, 0)", [(n, "x" * 200) for n in range(1, 101)]
        )
        connection.commit()
        connection.close()
    return app

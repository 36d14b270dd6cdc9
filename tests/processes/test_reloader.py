"""``flask run --debug``: a changed file starts the app anew, and the old one leaves nothing."""

from __future__ import annotations

import sys
import threading
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path

from tests.cable.client import Client
from tests.servers import Server, free_port, running, wait_until

SHOP = """
import os
from flask import Flask
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from flask_litestack import Litestack

class Model(DeclarativeBase):
    pass

class Item(Model):
    __tablename__ = "item"
    id: Mapped[int] = mapped_column(primary_key=True)

litestack = Litestack(metadata=Model.metadata)

@litestack.channel("news")
def news():
    return True

def create_app():
    app = Flask(__name__, instance_path=os.path.abspath("data"))
    litestack.init_app(app)
    with app.app_context():  # in the reloader's own process, too
        litestack.db.create_all()
        litestack.db.session.query(Item).count()

    @app.get("/")
    def index():
        return "version 1"

    @app.get("/add")
    def add():
        with litestack.db.write() as session:
            session.add(Item())
        return str(litestack.db.session.query(Item).count())

    @app.get("/tell")
    def tell():
        news.broadcast("new")
        return "told"

    return app
"""


def test_the_reloader_loses_no_row_and_leaves_no_second_hub(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(SHOP)
    port = free_port()
    command = [sys.executable, "-m", "flask", "--app", "shop", "run", "--debug", "-p", str(port)]
    with running(command, tmp_path, port=port) as server, Client(port) as old:
        old.subscribe("news")
        [old_pid] = server.children()
        added: list[str] = []
        stop = threading.Event()
        writer = threading.Thread(target=add_until, args=(stop, server, added))
        writer.start()

        (tmp_path / "shop.py").write_text(SHOP.replace("version 1", "version two"))
        wait_until(lambda: answer_of(server) == "version two", server.output)
        before = len(added)
        wait_until(lambda: len(added) > before, server.output)
        stop.set()
        writer.join()

        assert int(server.get("/add")) > len(added)
        assert old.read_until_close() == 1001
        assert not Path(f"/proc/{old_pid}").exists()
        assert len(server.children()) == 1
        with Client(port) as new:
            new.subscribe("news")
            server.get("/tell")
            server.get("/tell")
            first, second = new.read(), new.read()
            assert second["id"] == first["id"] + 1  # each came once
            assert len(list((tmp_path / "data" / "run").glob("cable-*.life"))) == 1
        assert "Traceback" not in server.output()


def add_until(stop: threading.Event, server: Server, added: list[str]) -> None:
    """Add rows, and note those that the server has acknowledged."""
    while not stop.is_set():
        with suppress(OSError, HTTPException):  # the old process ended in the middle of it
            added.append(server.get("/add"))


def answer_of(server: Server) -> str:
    try:
        return server.get()
    except OSError:
        return ""

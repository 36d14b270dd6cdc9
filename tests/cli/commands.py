"""Runs ``flask litestack ...`` as a user does, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.servers import environment

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
    name: Mapped[str]

litestack = Litestack(metadata=Model.metadata)

def create_app():
    app = Flask(__name__, instance_path=os.path.abspath("data"))
    app.config.from_prefixed_env()
    litestack.init_app(app)
    return app
"""

ADOPTING_SHOP = """
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from flask_litestack import Litestack

app = Flask(__name__)
app.config["LITESTACK_DATA_PATH"] = {data_path!r}
app.config["SQLALCHEMY_DATABASE_URI"] = {uri!r}
db = SQLAlchemy(app)
litestack = Litestack(db=db)
litestack.init_app(app)
"""


def adopting_shop(folder: Path, uri: str) -> None:
    """Write a shop.py that adopts Flask-SQLAlchemy, and make its data folder."""
    data_path = folder / "data"
    data_path.mkdir()
    (folder / "shop.py").write_text(ADOPTING_SHOP.format(data_path=str(data_path), uri=uri))


def flask(
    folder: Path, *arguments: str, stdin: str = "", **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run ``flask ARGUMENTS`` in a folder whose app is shop.py."""
    return subprocess.run(
        [sys.executable, "-m", "flask", *arguments],
        cwd=folder,
        env=environment(**{"FLASK_APP": "shop", **variables}),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
    )


def litestack(
    folder: Path, *arguments: str, stdin: str = "", **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run ``flask litestack ARGUMENTS``."""
    return flask(folder, "litestack", *arguments, stdin=stdin, **variables)


def as_json(done: subprocess.CompletedProcess[str]) -> Any:
    """What a command with --json printed."""
    assert done.stdout, done.stderr
    return json.loads(done.stdout)

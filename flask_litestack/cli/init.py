"""``flask litestack init``: adopts an app that exists already."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import click
from flask import Flask
from flask.cli import ScriptInfo
from jinja2 import Environment, StrictUndefined
from werkzeug.utils import secure_filename

from .. import extension

#: What is written, if it is absent -> the template it is made from.
FILES = {"Dockerfile": "Dockerfile", ".dockerignore": "dockerignore", "fly.toml": "fly.toml"}

DEPENDENCY = "flask-litestack[serve]"


@dataclass(frozen=True)
class Step:
    """What is left for a person to do: lines to put in some place."""

    place: str
    lines: str


@click.command
@click.option("--check", is_flag=True, help="Write nothing; exit code 1 if something is missing.")
@click.pass_context
def command(context: click.Context, check: bool) -> None:
    """Prepare an existing app: Dockerfile, .dockerignore, fly.toml.

    They are written to the current folder unless they are there; nothing is ever overwritten.
    Then it prints what is left to do by hand.
    """
    info = context.ensure_object(ScriptInfo)
    app = info.load_app()
    folder = Path.cwd()
    missing = [name for name in FILES if not (folder / name).exists()]
    for name in FILES:
        if name not in missing:
            click.echo(f"kept     {name}")
        elif check:
            click.echo(f"missing  {name}")
        else:
            (folder / name).write_text(_render(FILES[name], folder, _import_path(info, folder)))
            click.echo(f"written  {name}")
    steps = list(_steps(app, folder))
    for step in steps:
        click.echo(f"\n{step.place}:\n\n{step.lines}")
    if not steps:
        click.echo("\nNothing is left to do: `flask litestack doctor` looks at the rest.")
    if check and (missing or steps):
        context.exit(1)


def _render(template: str, folder: Path, app: str) -> str:
    source = (files(__package__) / "templates" / template).read_text()
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True)
    return environment.from_string(source).render(
        app=_docker_quoted(app), name=_fly_name(folder), requirements=_requirements(folder).name
    )


def _docker_quoted(text: str) -> str:
    """Quote a value for ENV; inside of quotes Docker takes these characters for more."""
    return '"' + re.sub(r'(["\\$])', r"\\\1", text) + '"'


def _fly_name(folder: Path) -> str:
    """Make a name for Fly.io: lower-case letters, digits and single dashes, a letter first."""
    name = re.sub(r"[._-]+", "-", secure_filename(folder.name).lower()).strip("-")
    return name if name[:1].isalpha() else f"app-{name}".strip("-")


def _steps(app: Flask, folder: Path) -> Iterator[Step]:
    path = _requirements(folder)
    if not path.exists() or not re.search("flask[-_.]litestack", path.read_text(), re.IGNORECASE):
        yield Step(f"To the dependencies in {path.name}", f"    {DEPENDENCY}")
    if extension.NAME not in app.extensions:
        adopted = app.extensions.get("sqlalchemy")
        yield from _new_steps() if adopted is None else _adopting_steps(app)
    if not any(rule.rule == "/up" for rule in app.url_map.iter_rules()):
        yield Step("For the checks in fly.toml, inside the app factory", UP)


def _new_steps() -> Iterator[Step]:
    yield Step(
        "At the top, beside your models (Model is your SQLAlchemy DeclarativeBase)",
        "    from flask_litestack import Litestack\n\n"
        "    litestack = Litestack(metadata=Model.metadata)",
    )
    yield Step("Inside the app factory", "    litestack.init_app(app)")


def _adopting_steps(app: Flask) -> Iterator[Step]:
    yield Step(
        "At the top, after db = SQLAlchemy(...)",
        "    import os\n\n"
        "    from flask_litestack import Litestack\n\n"
        "    litestack = Litestack(db=db)",
    )
    lines = f'    data_path = os.environ.get("{_DATA_PATH}", app.instance_path)\n'
    file = f"sqlite:///{{data_path}}/{_file_name(app)}"
    if "SQLALCHEMY_ENGINES" in app.config:
        lines += f'    app.config["SQLALCHEMY_ENGINES"] = {{"default": f"{file}"}}'
    else:
        lines += f'    app.config["SQLALCHEMY_DATABASE_URI"] = f"{file}"'
    yield Step("Inside the app factory, before db.init_app(app)", lines)
    yield Step("Inside the app factory, after db.init_app(app)", "    litestack.init_app(app)")


_DATA_PATH = "LITESTACK_DATA_PATH"

UP = """\
    @app.get("/up")
    def up():
        return litestack.up()"""


def _file_name(app: Flask) -> str:
    """The name of the app's SQLite file, so that an existing one stays in use."""
    with app.app_context():
        engines: dict[Any, Any] = app.extensions["sqlalchemy"].engines
        for engine in engines.values():
            if engine.dialect.name == "sqlite" and engine.url.database not in (None, ":memory:"):
                return Path(engine.url.database).name
    return "data.sqlite3"


def _requirements(folder: Path) -> Path:
    """The file that lists the dependencies: requirements.txt, else a pyproject.toml's project."""
    project = folder / "pyproject.toml"
    listed = folder / "requirements.txt"
    if not listed.exists() and project.exists() and "project" in tomllib.loads(project.read_text()):
        return project
    return listed


def _import_path(info: ScriptInfo, folder: Path) -> str:
    """What FLASK_APP must be: as given, else the file that ``flask`` looks for."""
    if info.app_import_path:
        return info.app_import_path
    return "wsgi" if (folder / "wsgi.py").exists() else "app"

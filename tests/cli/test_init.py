"""``flask litestack init`` on apps that know nothing of us yet."""

from __future__ import annotations

import sys
import tomllib
from importlib.resources import files
from pathlib import Path

import pytest

from tests.servers import TREE, running

from .commands import litestack

PLAIN = """
from flask import Flask
from flask_sqlalchemy import SQLAlchemy

db = SQLAlchemy()


class Item(db.Model):
    id = db.Column(db.Integer, primary_key=True)


def create_app():
    app = Flask(__name__, instance_path=__file__.replace("shop.py", "instance"))
    app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite:///shop.db"
    db.init_app(app)

    @app.get("/add")
    def add():
        db.create_all()
        db.session.add(Item())
        db.session.commit()
        return str(db.session.query(Item).count())

    return app
"""


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A folder with a plain app on Flask-SQLAlchemy."""
    folder = tmp_path / "my_shop"
    folder.mkdir()
    (folder / "shop.py").write_text(PLAIN)
    (folder / "requirements.txt").write_text("flask\nflask-sqlalchemy\n")
    return folder


def blocks(printed: str) -> dict[str, str]:
    """The lines that init printed, by the place they belong to."""
    found: dict[str, str] = {}
    place = ""
    for line in printed.splitlines():
        if line.endswith(":") and not line.startswith(" "):
            place = line.removesuffix(":")
            found[place] = ""
        elif place:
            found[place] += f"{line}\n"
    return {place: lines.strip("\n") for place, lines in found.items()}


def unindented(lines: str) -> str:
    return "\n".join(line.removeprefix("    ") for line in lines.splitlines())


def follow(folder: Path, printed: str) -> None:
    """Do by hand what init says is left to do."""
    found = blocks(printed)
    top = unindented(found.pop("At the top, after db = SQLAlchemy(...)"))
    before = found.pop("Inside the app factory, before db.init_app(app)")
    after = found.pop("Inside the app factory, after db.init_app(app)")
    up = found.pop("For the checks in fly.toml, inside the app factory")
    source = (folder / "shop.py").read_text()
    made, initialized = "db = SQLAlchemy()\n", "    db.init_app(app)\n"
    source = source.replace(made, f"{made}{top}\n")
    source = source.replace(initialized, f"{before}\n{initialized}{after}\n{up}\n")
    (folder / "shop.py").write_text(source)
    dependency = found.pop("To the dependencies in requirements.txt").strip()
    with (folder / "requirements.txt").open("a") as file:
        file.write(f"{dependency}\n")
    assert found == {}


def test_a_plain_flask_sqlalchemy_app_is_adopted_and_served(plain: Path) -> None:
    done = litestack(plain, "init")
    assert done.returncode == 0, done.stderr
    follow(plain, done.stdout)

    again = litestack(plain, "init", "--check")
    assert again.returncode == 0, again.stdout
    assert "Nothing is left to do" in again.stdout
    command = [sys.executable, "-m", "flask", "litestack", "serve"]
    variables = {"FLASK_APP": "shop", "LITESTACK_DATA_PATH": str(plain / "data")}
    with running(command, plain, variables) as server:
        assert server.get("/up") == "up\n"
        assert server.get("/add") == "1"
        assert server.get("/add") == "2"
        checked = litestack(plain, "doctor", **variables)
        assert checked.returncode == 0, checked.stdout
        assert "journal_mode wal" in checked.stdout
        assert server.terminate() == 0
    assert (plain / "data" / "shop.db").exists()


def test_nothing_is_written_twice_or_overwritten(plain: Path) -> None:
    (plain / "Dockerfile").write_text("FROM scratch\n")

    first = litestack(plain, "init")
    written = [plain / "fly.toml", plain / ".dockerignore"]
    before = [(file.read_bytes(), file.stat().st_mtime_ns) for file in written]
    second = litestack(plain, "init")

    assert "kept     Dockerfile" in first.stdout
    assert "written  fly.toml" in first.stdout
    assert (plain / "Dockerfile").read_text() == "FROM scratch\n"
    assert "written" not in second.stdout
    assert [(file.read_bytes(), file.stat().st_mtime_ns) for file in written] == before


def test_check_writes_nothing_and_ends_with_1(plain: Path) -> None:
    done = litestack(plain, "init", "--check")

    assert done.returncode == 1
    assert "missing  Dockerfile" in done.stdout
    assert "litestack.init_app(app)" in done.stdout
    assert not any((plain / name).exists() for name in ("Dockerfile", ".dockerignore", "fly.toml"))


def test_an_app_without_a_database_gets_the_other_lines(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("from flask import Flask\napp = Flask(__name__)\n")

    done = litestack(tmp_path, "init", FLASK_APP="")

    assert "litestack = Litestack(metadata=Model.metadata)" in done.stdout
    assert 'FLASK_APP="app"' in (tmp_path / "Dockerfile").read_text()


def test_without_an_app_it_is_wrong_usage(tmp_path: Path) -> None:
    done = litestack(tmp_path, "init", FLASK_APP="")

    assert done.returncode == 2
    assert "Could not locate a Flask application" in done.stderr


def test_a_project_of_pyproject_toml_is_installed_as_one(plain: Path) -> None:
    (plain / "requirements.txt").unlink()
    (plain / "pyproject.toml").write_text('[project]\nname = "shop"\nversion = "1"\n')

    done = litestack(plain, "init")

    assert "To the dependencies in pyproject.toml" in done.stdout
    assert "--find-links wheels .\n" in (plain / "Dockerfile").read_text()


def test_packages_may_come_from_a_folder_beside_the_dockerfile(plain: Path) -> None:
    litestack(plain, "init")

    assert "--find-links wheels -r requirements.txt\n" in (plain / "Dockerfile").read_text()


@pytest.mark.parametrize(
    "name", ["flask_litestack", "Flask-Litestack", "flask-litestack[serve]>=1"]
)
def test_we_are_found_among_the_dependencies_however_we_are_written(plain: Path, name: str) -> None:
    (plain / "requirements.txt").write_text(f"flask\n{name}\n")

    assert "To the dependencies" not in litestack(plain, "init").stdout


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("My Shop (v2)", "my-shop-v2"),
        ("blüte.example", "blute-example"),
        ("2048", "app-2048"),
        ("茶", "app"),
    ],
)
def test_any_folder_gives_a_name_that_fly_takes(plain: Path, folder: str, name: str) -> None:
    renamed = plain.rename(plain.with_name(folder))

    assert litestack(renamed, "init").returncode == 0
    assert tomllib.loads((renamed / "fly.toml").read_text())["app"] == name


def test_a_call_of_the_factory_is_quoted_as_docker_wants_it(plain: Path) -> None:
    source = PLAIN.replace("def create_app():", "def create_app(mode, price):")
    (plain / "shop.py").write_text(source)

    assert litestack(plain, "init", FLASK_APP='shop:create_app("prod", "$1")').returncode == 0
    dockerfile = (plain / "Dockerfile").read_text()
    assert r' FLASK_APP="shop:create_app(\"prod\", \"\$1\")" ' in dockerfile


def test_fly_toml_is_that_of_the_template(plain: Path) -> None:
    litestack(plain, "init")

    ours = tomllib.loads((plain / "fly.toml").read_text())
    blog = tomllib.loads((TREE / "examples/blog/fly.toml").read_text())

    assert ours.pop("app") == "my-shop"
    del blog["app"], blog["primary_region"]
    assert ours == blog


def test_the_templates_are_part_of_the_package() -> None:
    folder = files("flask_litestack.cli") / "templates"

    assert sorted(file.name for file in folder.iterdir()) == [
        "Dockerfile",
        "dockerignore",
        "fly.toml",
    ]

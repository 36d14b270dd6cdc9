"""``flask litestack serve`` becomes gunicorn."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers import environment, running, wait_until

APP = """
from flask import Flask

def create_app(greeting="hello"):
    app = Flask(__name__)

    @app.get("/")
    def index():
        return greeting

    return app
"""

SERVE = [sys.executable, "-m", "flask", "litestack", "serve"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(APP)
    return tmp_path


def test_it_serves_the_app_that_flask_finds_and_keeps_its_process(folder: Path) -> None:
    with running(SERVE, folder, {"FLASK_APP": "shop"}) as server:
        assert server.get() == "hello"
        command = Path(f"/proc/{server.pid}/cmdline").read_bytes().split(b"\0")
        assert command[1].endswith(b"/gunicorn")
        assert b"python:flask_litestack.gunicorn" in command
        assert server.terminate() == 0


def test_the_app_may_be_a_factory_with_arguments(folder: Path) -> None:
    command = [sys.executable, "-m", "flask", "--app", "shop:create_app('moin')"]
    with running([*command, "litestack", "serve"], folder) as server:
        assert server.get() == "moin"


def test_without_a_name_it_is_app_py(folder: Path) -> None:
    (folder / "shop.py").rename(folder / "app.py")

    with running(SERVE, folder) as server:
        assert server.get() == "hello"


def test_its_arguments_are_gunicorns(folder: Path) -> None:
    with running([*SERVE, "--threads", "2", "-w", "2"], folder, {"FLASK_APP": "shop"}) as server:
        wait_until(lambda: len(server.children()) == 2)


def test_a_gunicorn_conf_of_ones_own_is_used(folder: Path) -> None:
    (folder / "gunicorn.conf.py").write_text(
        "from flask_litestack.gunicorn import *\nworkers = 3\n"
    )

    with running(SERVE, folder, {"FLASK_APP": "shop"}) as server:
        wait_until(lambda: len(server.children()) == 3)


def test_without_gunicorn_it_says_what_to_install(folder: Path) -> None:
    """In an environment of its own, which has all of this one's packages but gunicorn."""
    environments = folder / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environments], check=True)
    [packages] = environments.glob("lib/python*/site-packages")
    [installed] = [Path(path) for path in sys.path if path.endswith("site-packages")]
    for entry in installed.iterdir():
        if not entry.name.startswith("gunicorn"):
            (packages / entry.name).symlink_to(entry)

    done = subprocess.run(
        [environments / "bin" / "python", "-m", "flask", "litestack", "serve"],
        cwd=folder,
        env=environment(FLASK_APP="shop", PATH=os.defpath),
        capture_output=True,
        text=True,
    )

    assert done.returncode == 1
    assert done.stderr.startswith("Error: gunicorn is not installed here.")
    assert "pip install 'flask-litestack[serve]'" in done.stderr

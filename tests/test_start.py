"""What comes before the first request: ``@litestack.before_serving``, and our own tables."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from flask_litestack import Litestack
from flask_litestack.sqlite import connect

from .servers import BIN, PATIENCE, environment, free_port, running, wait_until

SHOP = """
import os, time
from flask import Flask
from flask_litestack import Litestack

litestack = Litestack()

@litestack.task
def work():
    pass

@litestack.channel("news")
def news():
    pass

@litestack.before_serving
def migrate():
    note(f"begin {os.getpid()}")
    time.sleep(0.3)
    if os.environ.get("FAIL"):
        raise ValueError("no such column: price")
    note(f"end {os.getpid()}")

def note(line):
    with (litestack.settings.data_path / "notes").open("a") as notes:
        print(line, file=notes)

def create_app():
    app = Flask(__name__)
    app.config.from_prefixed_env()
    litestack.init_app(app)

    @app.get("/")
    def index():
        return (litestack.settings.data_path / "notes").read_text()

    @app.get("/enqueue")
    def enqueue():
        work.enqueue()
        litestack.cable.broadcast("news", {})
        return "done"

    return app

def create_early():
    app = create_app()
    with app.app_context():
        litestack.db.path
    return app

def create_wrapped():
    from werkzeug.middleware.proxy_fix import ProxyFix
    return ProxyFix(create_app())
"""

GUNICORN = [str(BIN / "gunicorn"), "-c", "python:flask_litestack.gunicorn"]
APP = "shop:create_app()"


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(SHOP)
    return tmp_path


@pytest.fixture
def data(shop: Path) -> Path:
    """A data folder that exists."""
    data = shop / "data"
    data.mkdir(mode=0o700)
    return data


def refused(shop: Path, *arguments: str, data: str = "data", **variables: str) -> str:
    """Start gunicorn, which must end with exit code 1; return what it printed."""
    done = subprocess.run(
        [*GUNICORN, *arguments],
        cwd=shop,
        env=environment(LITESTACK_DATA_PATH=data, PORT=str(free_port()), **variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 1, done.stdout
    assert "Booting worker" not in done.stdout
    return done.stdout


def test_the_decorator_leaves_the_function_as_it_is() -> None:
    litestack = Litestack()

    @litestack.before_serving
    def migrate() -> int:
        return 7

    assert migrate() == 7
    assert litestack.functions_before_serving == (migrate,)


@pytest.mark.parametrize(
    "command",
    [[*GUNICORN, APP], [sys.executable, "-m", "flask", "--app", "shop", "litestack", "serve"]],
    ids=["gunicorn", "serve"],
)
def test_the_master_runs_it_once_before_the_first_request(
    shop: Path, data: Path, command: list[str]
) -> None:
    with running(command, shop, {"LITESTACK_DATA_PATH": "data"}) as server:
        assert server.get().split() == ["begin", str(server.pid), "end", str(server.pid)]


def test_a_reload_does_not_run_it_again_for_the_same_code(shop: Path, data: Path) -> None:
    with running([*GUNICORN, APP], shop, {"LITESTACK_DATA_PATH": "data"}) as server:
        before = server.children()
        os.kill(server.pid, signal.SIGHUP)
        wait_until(lambda: len(server.children()) == 2 and not set(before) & set(server.children()))
        assert server.get().count("begin") == 1


def test_without_preload_each_worker_runs_it_one_after_the_other(shop: Path, data: Path) -> None:
    config = "from flask_litestack.gunicorn import *\n\npreload_app = False\n"
    (shop / "gunicorn.conf.py").write_text(config)

    with running([*GUNICORN[:1], APP], shop, {"LITESTACK_DATA_PATH": "data"}) as server:
        wait_until(lambda: server.get().count("end") == 2, server.output)
        first, last, *others = (tuple(line.split()) for line in server.get().splitlines())
        assert {first[1], others[0][1]} == set(map(str, server.children()))
        assert (first[0], last) == ("begin", ("end", first[1]))


def test_two_servers_that_start_at_once_run_it_one_after_the_other(shop: Path, data: Path) -> None:
    variables = environment(LITESTACK_DATA_PATH="data")
    servers = [
        subprocess.Popen(
            [*GUNICORN, "-b", f"127.0.0.1:{free_port()}", APP], cwd=shop, env=variables
        )
        for _ in range(2)
    ]
    try:
        notes = data / "notes"
        wait_until(lambda: notes.exists() and notes.read_text().count("end") == 2)
        a, b, c, d = notes.read_text().splitlines()
        assert [a, b, c, d] == [f"{w} {p.split()[1]}" for p in (a, c) for w in ("begin", "end")]
    finally:
        for server in servers:
            server.terminate()
        assert [server.wait(PATIENCE) for server in servers] == [0, 0]


def test_an_error_in_it_ends_the_server_with_its_reason(shop: Path, data: Path) -> None:
    said = refused(shop, APP, FAIL="yes")

    assert "Reason: ValueError: no such column: price" in said
    assert "in migrate" in said  # where


def test_without_preload_an_error_in_it_ends_the_server_too(shop: Path, data: Path) -> None:
    config = "from flask_litestack.gunicorn import *\n\npreload_app = False\n"
    (shop / "gunicorn.conf.py").write_text(config)

    done = subprocess.run(
        [*GUNICORN[:1], "-b", f"127.0.0.1:{free_port()}", APP],
        cwd=shop,
        env=environment(LITESTACK_DATA_PATH="data", FAIL="yes"),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )

    # gunicorn's own code for a worker that cannot start, or 1 if another one fails meanwhile.
    assert done.returncode in (3, 1)
    assert "Reason: ValueError: no such column: price" in done.stderr


@pytest.mark.parametrize(("file", "part"), [("data", "jobs"), ("cable", "cable")])
def test_tables_of_a_release_too_new_end_the_server_with_a_sentence(
    shop: Path, data: Path, file: str, part: str
) -> None:
    with running([*GUNICORN, APP], shop, {"LITESTACK_DATA_PATH": "data"}) as server:
        server.get("/enqueue")
        assert server.terminate() == 0
    with closing(connect(data / f"{file}.sqlite3")) as connection:
        update = "UPDATE litestack_schema SET version = 99, readable_from = 99 WHERE part = ?"
        connection.execute(update, (part,))
        connection.commit()

    said = refused(shop, APP)

    assert f"Reason: NewerStoreError: the tables of {part} are of version 99" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("factory", ["create_app", "create_early"])
def test_a_data_folder_that_cannot_be_used_ends_the_server_with_a_sentence(
    shop: Path, factory: str
) -> None:
    said = refused(shop, f"shop:{factory}()", data="shop.py/data")

    assert "DataPathError: The data folder" in said
    assert "shop.py is a file, not a folder" in said
    assert "Traceback" not in said


def test_a_wrapped_app_is_served_with_a_warning(shop: Path, data: Path) -> None:
    (data / "notes").write_text("nothing was done")

    command = [*GUNICORN, "shop:create_wrapped()"]
    with running(command, shop, {"LITESTACK_DATA_PATH": "data"}) as server:
        assert server.get() == "nothing was done"
        assert "[WARNING] gunicorn was given a ProxyFix, not a Flask app" in server.output()
        assert "app.wsgi_app = ProxyFix(app.wsgi_app)" in server.output()


def test_what_a_server_seldom_needs_is_not_loaded_at_its_start(tmp_path: Path) -> None:
    code = """
import sys
import flask_litestack.gunicorn, flask_litestack.jobs.gunicorn_role
from shop import create_app, litestack
from flask_litestack import production
from flask_litestack.sqlite import driver
from flask_litestack.start import start
app = create_app()
with app.app_context():
    start(litestack)
seldom = {"wsproto", "h11", "flask_sock", "tarfile", "tomllib", "alembic"}
seldom |= {"sqlite3", "pysqlite3"} - {driver.name}  # two libraries drop each other's locks
print(sorted(seldom & set(sys.modules)))
"""
    (tmp_path / "shop.py").write_text(SHOP)
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment(FLASK_LITESTACK_DATA_PATH=str(tmp_path / "data")),
    )
    assert done.stdout == "[]\n", done.stdout + done.stderr

"""What ``doctor`` and the start of gunicorn say of an app and of how it is served."""

from __future__ import annotations

import importlib.metadata
import socket
from collections.abc import Iterable
from pathlib import Path

import pytest
from flask import Flask
from gunicorn.config import Config

from flask_litestack import Litestack, machine, production
from flask_litestack.config import Settings
from flask_litestack.sqlite.health import Finding, Severity

from .cli.commands import SHOP, as_json, litestack
from .servers import BIN, running

GUNICORN = [str(BIN / "gunicorn"), "--config", "python:flask_litestack.gunicorn"]


def problems(found: Iterable[Finding]) -> list[str]:
    """What is wrong, each with a fix."""
    bad = [finding for finding in found if finding.severity is not Severity.OK]
    assert all(finding.fix for finding in bad)
    return [finding.what for finding in bad]


def server(**settings: object) -> Config:
    cfg = Config()
    cfg.set("worker_class", "flask_litestack.jobs.gunicorn_role.RoleWorker")
    cfg.set("threads", 4)
    for name, value in settings.items():
        cfg.set(name, value)
    return cfg


def test_debug_mode_and_a_guessable_key_are_errors() -> None:
    app = Flask("shop")
    app.debug = True
    app.secret_key = "dev"

    found = list(production.check_app(app))

    assert [finding.severity for finding in found] == [Severity.ERROR, Severity.ERROR]
    assert problems(found)[0].startswith("Debug mode is on")
    assert problems(found)[1].startswith("SECRET_KEY has 3 bytes")


@pytest.mark.parametrize("key", [None, "0123456789abcdef", b"\0" * 32])
def test_a_long_key_or_none_is_fine(key: str | bytes | None) -> None:
    app = Flask("shop")
    app.secret_key = key

    assert problems(production.check_app(app)) == []


def test_the_workers_of_ours_and_gthread_are_fine() -> None:
    assert problems(production.check_server(server())) == []
    assert problems(production.check_server(server(worker_class="gthread"))) == []


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"worker_class": "sync"}, "worker_class = 'sync' has one thread"),
        ({"worker_class": "gevent"}, "worker_class = 'gevent' has one thread"),
        ({"threads": 1}, "threads = 1"),
        ({"max_requests": 1000}, "max_requests = 1000 ends a worker now and then"),
    ],
)
def test_settings_of_gunicorn_that_hurt_are_named(settings: dict[str, object], said: str) -> None:
    [what] = problems(production.check_server(server(**settings)))

    assert what.startswith(said)


def settings(tmp_path: Path, **changes: object) -> Settings:
    return Settings(data_path=tmp_path, **changes)  # type: ignore[arg-type]


def test_too_few_open_files_for_the_sockets_wanted_are_a_warning(tmp_path: Path) -> None:
    wanted = 100_000_000

    [what] = problems(
        production.check_sockets(settings(tmp_path, cable_max_clients=wanted)),
    )

    assert f"not LITESTACK_CABLE_MAX_CLIENTS = {wanted}" in what
    assert problems(production.check_sockets(settings(tmp_path, cable_max_clients=1))) == []
    assert not list(production.check_sockets(settings(tmp_path, cable_url=None)))


FLY = """
[http_service]
  internal_port = 8080
  auto_stop_machines = %s
"""


@pytest.mark.parametrize("value", ['"stop"', '"suspend"', "true"])
def test_a_machine_that_is_stopped_with_cron_tasks_is_a_warning(tmp_path: Path, value: str) -> None:
    file = tmp_path / "fly.toml"
    file.write_text(FLY % value)

    [what] = problems(production.check_fly(file, crons=2))

    assert "2 tasks with cron=" in what
    assert problems(production.check_fly(file, crons=0)) == []


def test_a_machine_that_stays_is_fine(tmp_path: Path) -> None:
    file = tmp_path / "fly.toml"
    file.write_text(FLY % '"off"')

    assert problems(production.check_fly(file, crons=2)) == []
    assert not list(production.check_fly(tmp_path / "nowhere", crons=2))


def test_what_would_run_beside_the_volume_is_named(tmp_path: Path) -> None:
    file = tmp_path / "fly.toml"
    file.write_text(
        "[processes]\napp = 'gunicorn'\nworker = 'flask litestack worker'\n"
        "[deploy]\nrelease_command = 'flask db upgrade'\n"
    )

    groups, release = problems(production.check_fly(file, crons=0))

    assert groups.startswith("[processes] has app, worker")
    assert release.startswith("release_command runs on a machine of its own")


def on_fly(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("FLY_MACHINE_ID", "me")
    monkeypatch.setenv("FLY_APP_NAME", "shop")
    monkeypatch.setenv("FLY_PROCESS_GROUP", "app")
    monkeypatch.setenv("FLY_PRIVATE_IP", address)


def test_other_machines_of_the_app_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:

        def check() -> list[Finding]:
            port = other.getsockname()[1]
            found = production.check_machine(
                settings(tmp_path), resolve=lambda host: ["127.0.0.1"], port=port
            )
            return list(found)

        assert check() == []
        on_fly(monkeypatch, "fdaa::1")
        [others] = problems(check())
        on_fly(monkeypatch, "127.0.0.1")
        [alone] = check()
        (tmp_path / machine.REFUSED).write_text("another machine is running.")
        [refused] = problems(check())

    assert others == "Other machines run the app, with data of their own: 127.0.0.1."
    assert alone.severity is Severity.OK
    assert refused == "Machine me does not serve: another machine is running."


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A folder with an app that has a nightly task."""
    (tmp_path / "shop.py").write_text(
        SHOP + "\n@litestack.task(cron='0 3 * * *')\ndef nightly():\n    pass\n"
    )
    return tmp_path


def test_doctor_reads_gunicorns_settings_from_where_gunicorn_does(shop: Path) -> None:
    (shop / "gunicorn.conf.py").write_text(
        "from flask_litestack.gunicorn import *\n\nmax_requests = 50\nthreads = 1\n"
    )
    (shop / "fly.toml").write_text(FLY % '"stop"')

    done = litestack(
        shop, "doctor", "--json", GUNICORN_CMD_ARGS="--threads 3", FLASK_SECRET_KEY="secret"
    )

    found = {finding["what"]: finding for finding in as_json(done)}
    bad = sorted(what for what in found if found[what]["severity"] != "ok")
    assert done.returncode == 1
    assert [what.partition(" ")[0] for what in bad if "lies on" not in what] == [
        "SECRET_KEY",
        "auto_stop_machines",
        "max_requests",
    ]


def test_doctor_says_that_gunicorns_configuration_is_broken(shop: Path) -> None:
    (shop / "gunicorn.conf.py").write_text("threads = \n")

    done = litestack(shop, "doctor")

    assert done.returncode == 1
    assert "gunicorn's configuration cannot be read" in done.stdout
    assert "Fix: Run `gunicorn --check-config`" in done.stdout


def test_doctor_says_that_gunicorn_is_missing_or_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    app, stack = Flask("shop"), Litestack()
    app.config["LITESTACK_DATA_PATH"] = tmp_path / "data"
    stack.init_app(app)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "23.0.0")
    with app.app_context():
        [old] = problems(production.findings(app, stack))

    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    with app.app_context():
        [missing] = problems(production.findings(app, stack))

    assert old.startswith("gunicorn 23.0.0 is older than 26.1")
    assert missing.startswith("gunicorn, which serves the app in production, is not installed")


def test_gunicorn_says_at_its_start_what_is_not_fit_for_production(shop: Path) -> None:
    command = [*GUNICORN, "--max-requests", "1000", "shop:create_app()"]
    variables = {"FLASK_SECRET_KEY": "secret"}

    with (shop / "shop.py").open("a") as file:
        file.write(
            "\nmake = create_app\n"
            "def create_app():\n"
            "    app = make()\n"
            "    app.add_url_rule('/', view_func=lambda: 'shop')\n"
            "    return app\n"
        )
    with running(command, shop, variables) as noisy:
        said = noisy.output()
    with running(command, shop, variables | {"FLASK_LITESTACK_PRODUCTION_WARNING": "false"}) as it:
        silent = it.output()

    assert "[WARNING] Not fit for production: SECRET_KEY has 6 bytes" in said
    assert "Not fit for production: max_requests = 1000" in said
    assert said.count("Not fit for production: SECRET_KEY") == 1
    assert "Not fit for production" not in silent

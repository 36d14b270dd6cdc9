"""The group itself: what is loaded, and how errors end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner

from flask_litestack.cli import COMMANDS
from flask_litestack.cli import litestack as group
from tests.servers import environment

from .commands import flask, litestack


def test_every_command_is_listed_with_what_it_does(shop: Path) -> None:
    done = litestack(shop, "--help")

    assert done.returncode == 0
    for name in COMMANDS:
        assert f"\n  {name} " in done.stdout


def test_help_of_every_command_needs_no_app(tmp_path: Path) -> None:
    for name in COMMANDS:
        done = CliRunner().invoke(group, [name, "--help"])
        assert done.exit_code == 0, done.output


def test_the_help_of_flask_loads_no_command() -> None:
    program = (
        "import sys\n"
        "import flask_litestack.cli as cli\n"
        "cli.litestack.get_short_help_str()\n"
        "loaded = [name for name in cli.COMMANDS if f'{cli.__name__}.{name}' in sys.modules]\n"
        "assert loaded == [], loaded\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env=environment())


def test_an_error_of_ours_is_one_sentence_and_exit_code_1(shop: Path) -> None:
    done = litestack(shop, "status", FLASK_LITESTACK_BUSY_TIMEOT="1")

    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "did you mean LITESTACK_BUSY_TIMEOUT?" in done.stderr


def test_an_app_without_init_app_is_told_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text("from flask import Flask\napp = Flask(__name__)\n")

    done = litestack(tmp_path, "status")

    assert done.returncode == 1
    assert "litestack.init_app(app) was not called" in done.stderr
    assert "flask litestack init" in done.stderr


def test_wrong_usage_ends_with_2(shop: Path) -> None:
    assert litestack(shop, "no-such-command").returncode == 2
    assert litestack(shop, "status", "--no-such-option").returncode == 2


def test_the_group_is_found_by_the_flask_command(shop: Path) -> None:
    assert "litestack" in flask(shop, "--help").stdout

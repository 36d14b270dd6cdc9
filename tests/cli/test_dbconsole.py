"""``flask litestack dbconsole``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .commands import litestack


def test_it_runs_sql_and_ends(used_shop: Path) -> None:
    done = litestack(used_shop, "dbconsole", "SELECT id, name FROM item ORDER BY id")

    assert done.returncode == 0, done.stderr
    assert done.stdout == "1|pen\n2|book\n"


def test_rows_as_json(used_shop: Path) -> None:
    done = litestack(used_shop, "dbconsole", "--json", "SELECT * FROM item WHERE id = 1")

    assert json.loads(done.stdout) == [{"id": 1, "name": "pen"}]


def test_statements_and_commands_from_standard_input(used_shop: Path) -> None:
    script = "INSERT INTO item\n (name) VALUES ('a; b');\n.tables\nSELECT count(*) FROM item;"

    done = litestack(used_shop, "dbconsole", stdin=script)

    assert done.returncode == 0, done.stderr
    assert done.stdout == "item\n3\n"


def test_a_statement_that_fails_stops_the_script_with_1(used_shop: Path) -> None:
    done = litestack(used_shop, "dbconsole", stdin="SELECT nope;\nSELECT 2;\n")

    assert done.returncode == 1
    assert "no such column: nope" in done.stderr
    assert done.stdout == ""


def test_foreign_keys_are_on(used_shop: Path) -> None:
    done = litestack(used_shop, "dbconsole", "PRAGMA foreign_keys")

    assert done.stdout == "1\n"


def test_without_a_database_it_says_so(shop: Path) -> None:
    done = litestack(shop, "dbconsole", "SELECT 1")

    assert done.returncode == 1
    assert "There is no database yet" in done.stderr


@pytest.mark.parametrize(
    ("version", "used"), [("3.40.1 2022-12-28", False), ("3.53.4 2026-05-01", True)]
)
def test_a_shell_with_the_wal_reset_race_is_not_used(
    used_shop: Path, version: str, used: bool
) -> None:
    folder = used_shop / "bin"
    folder.mkdir()
    shell = folder / "sqlite3"
    shell.write_text(f'#!/bin/sh\n[ "$1" = -version ] && echo "{version}" || echo "the shell"\n')
    shell.chmod(0o755)

    done = litestack(
        used_shop, "dbconsole", "SELECT 7", PATH=f"{folder}{os.pathsep}{os.environ['PATH']}"
    )

    assert done.stdout == ("the shell\n" if used else "7\n")


def test_a_person_at_the_console_goes_on_after_an_error(used_shop: Path) -> None:
    """At a terminal an error is shown and the next statement is asked for."""
    import pty

    main, second = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "flask_litestack.sqlite.console", used_shop / "data/data.sqlite3"],
        stdin=second,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {"TERM": "dumb"},
    )
    os.close(second)
    os.write(main, b"SELECT nope;\nSELECT 6 *\n7;\n.quit\n")
    output, _ = process.communicate(timeout=30)
    os.close(main)

    assert b"no such column: nope" in output
    assert b"42" in output
    assert process.returncode == 0

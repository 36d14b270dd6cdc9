"""The scripts that a newcomer and CI run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.servers import TREE


def python_on(path: Path | str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/sh", str(TREE / "scripts" / "_python")],
        env={"PATH": str(path)},
        capture_output=True,
        text=True,
    )


def test_a_python_that_is_new_enough_is_found(tmp_path: Path) -> None:
    (tmp_path / "python3").write_text("#!/bin/sh\nexit 1\n")  # like one that is too old
    (tmp_path / "python3").chmod(0o755)
    (tmp_path / "python3.11").symlink_to(sys.executable)

    done = python_on(tmp_path)

    assert done.stdout.strip() == str(tmp_path / "python3.11")


def test_without_one_a_sentence_says_so(tmp_path: Path) -> None:
    done = python_on(tmp_path)

    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == (
        "flask-litestack needs Python 3.11 or later, and there is none on the PATH.\n"
    )


def test_the_lowest_versions_are_those_of_pyproject_toml() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/_lowest.py"],
        cwd=TREE,
        capture_output=True,
        text=True,
        check=True,
    )

    assert "sqlalchemy==2.0.31" in done.stdout.splitlines()
    assert ">" not in done.stdout

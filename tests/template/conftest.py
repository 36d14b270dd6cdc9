from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
Bake = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What cookiecutter would see of this repository, committed or not, without our clutter."""
    copy = tmp_path_factory.mktemp("repository")
    for name in git("ls-files", "--cached", "--others", "--exclude-standard", "-z").split("\0"):
        if name and (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    return copy


@pytest.fixture
def bake(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bake:
    """Run the cookiecutter command, without questions, on the repository; into ``tmp_path``."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # where it keeps notes

    def run(*options: str, **answers: str) -> subprocess.CompletedProcess[str]:
        extra = [f"{name}={value}" for name, value in answers.items()]
        command = [sys.executable, "-m", "cookiecutter", str(repository), "--no-input"]
        command += ["--output-dir", str(tmp_path), *options, *extra]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    return run


def git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout

from __future__ import annotations

import multiprocessing
import stat
from pathlib import Path

import pytest

from blog import create_app, secret_key


def test_many_processes_starting_at_once_agree_on_one_key(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        keys = set(pool.map(secret_key.load, [tmp_path] * 16))
    assert len(keys) == 1
    assert len(keys.pop()) >= 32
    assert [path.name for path in tmp_path.iterdir()] == ["secret_key"]


def test_only_its_owner_reads_the_key(tmp_path: Path) -> None:
    secret_key.load(tmp_path)
    assert stat.S_IMODE((tmp_path / "secret_key").stat().st_mode) == 0o600


def test_two_sites_have_two_keys(tmp_path: Path) -> None:
    keys = {create_app({"LITESTACK_DATA_PATH": str(tmp_path / name)}).secret_key for name in "ab"}
    assert len(keys) == 2


def test_the_environment_overrides_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_KEY", "from outside")
    assert create_app({"LITESTACK_DATA_PATH": str(tmp_path)}).secret_key == "from outside"
    assert not (tmp_path / "secret_key").exists()

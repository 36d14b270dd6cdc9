"""Settings: known keys, right types, and messages that name the key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from flask_litestack import ConfigError
from flask_litestack.config import Settings, load


def loaded(**config: Any) -> Settings:
    return load(config, instance_path="/instance", root_path="/app")


def test_defaults() -> None:
    settings = loaded()
    assert settings.busy_timeout == 5.0
    assert settings.synchronous == "NORMAL"
    assert settings.guard is True


def test_keys_of_others_are_none_of_our_business() -> None:
    loaded(SECRET_KEY="x", LITE=1)


def test_an_unknown_key_names_the_nearest_known_one() -> None:
    with pytest.raises(ConfigError, match=r"LITESTACK_BUSYTIMEOUT; did you mean LITESTACK_BUSY_T"):
        loaded(LITESTACK_BUSYTIMEOUT=1)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("LITESTACK_BUSY_TIMEOUT", "5"),
        ("LITESTACK_BUSY_TIMEOUT", True),
        ("LITESTACK_BUSY_TIMEOUT", -1),
        ("LITESTACK_BUSY_TIMEOUT", float("nan")),
        ("LITESTACK_SYNCHRONOUS", "OFF"),
        ("LITESTACK_SYNCHRONOUS", 1),
        ("LITESTACK_GUARD", "yes"),
        ("LITESTACK_DATA_PATH", ""),
        ("LITESTACK_DATA_PATH", 7),
        ("LITESTACK_UP_TOKEN", True),
    ],
)
def test_a_value_of_the_wrong_type_names_its_key(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=key):
        loaded(**{key: value})


def test_an_integer_is_a_time_too() -> None:
    assert loaded(LITESTACK_BUSY_TIMEOUT=3).busy_timeout == 3.0


@pytest.mark.parametrize(
    "value", ["mail,default", "mail, default", "mail default", ["mail", "default"]]
)
def test_several_names_are_a_list_or_separated(value: Any) -> None:
    assert loaded(LITESTACK_JOBS_QUEUES=value).jobs_queues == ("mail", "default")


def test_a_text_of_digits_alone_may_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FLASK_LITESTACK_UP_TOKEN", "123456")
    app = Flask("shop")
    app.config.from_prefixed_env()
    assert loaded(**app.config).up_token == "123456"


def test_a_relative_path_is_taken_from_the_root_path() -> None:
    assert loaded(LITESTACK_DATA_PATH="data").data_path == Path("/app/data")


def test_the_app_comes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITESTACK_DATA_PATH", "/environment")
    assert loaded().data_path == Path("/environment")
    assert loaded(LITESTACK_DATA_PATH="/app-config").data_path == Path("/app-config")
    monkeypatch.delenv("LITESTACK_DATA_PATH")
    assert loaded().data_path == Path("/instance")

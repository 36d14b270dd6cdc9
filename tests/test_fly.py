"""Every fly.toml of the repository says what Fly.io documents, and what one machine needs.

The keys are those of https://fly.io/docs/reference/configuration/: ``fly deploy`` ignores a
misspelt one without a word.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from flask_litestack import gunicorn

from .servers import TREE

FILES = [
    TREE / "fly.toml",
    TREE / "examples/blog/fly.toml",
    TREE / "template/{{cookiecutter.project_slug}}/fly.toml",
    TREE / "flask_litestack/cli/templates/fly.toml",
]

#: The kinds of values.
NUMBER = (int, float)
TIME = (int, str)  # "10s"; a number is in seconds for kill_timeout, in milliseconds elsewhere
SIZE = (int, str)  # "1gb"
NAMES = (list,)
TEXT = (str,)
SWITCH = (bool,)

CONCURRENCY = {"type": {"connections", "requests"}, "soft_limit": int, "hard_limit": int}
CHECK = {
    "grace_period": TIME,
    "interval": TIME,
    "timeout": TIME,
    "method": TEXT,
    "path": TEXT,
    "protocol": {"http", "https"},
    "tls_server_name": TEXT,
    "tls_skip_verify": SWITCH,
    "headers": dict,
}
MACHINE_CHECK = {
    "image": TEXT,
    "entrypoint": NAMES,
    "command": NAMES,
    "kill_signal": TEXT,
    "kill_timeout": TIME,
}
VM = {
    "size": TEXT,
    "memory": SIZE,
    "cpus": {1, 2, 4, 8, 16},
    "cpu_kind": {"shared", "performance"},
    "kernel_args": TEXT,
    "host_dedication_id": TEXT,
    "persist_rootfs": {"never", "restart", "always"},
    "processes": NAMES,
}

#: What may be in a fly.toml; a list is an array of tables. The sections that no app on one machine
#: uses (services, statics, files, metrics, checks, experimental) are left out: add one when it is
#: used.
SCHEMA: Mapping[str, Any] = {
    "app": TEXT,
    "primary_region": TEXT,
    "kill_signal": {"SIGINT", "SIGTERM", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGKILL", "SIGSTOP"},
    "kill_timeout": TIME,
    "swap_size_mb": int,
    "console_command": TEXT,
    "build": {
        "builder": TEXT,
        "buildpacks": NAMES,
        "image": TEXT,
        "dockerfile": TEXT,
        "ignorefile": TEXT,
        "build-target": TEXT,
        "args": dict,
    },
    "deploy": {
        "strategy": {"rolling", "immediate", "canary", "bluegreen"},
        "max_unavailable": NUMBER,
        "wait_timeout": TIME,
        "release_command": TEXT,
        "release_command_timeout": TIME,
        "release_command_vm": VM,
    },
    "env": dict,
    "processes": dict,
    "mounts": [
        {
            "source": TEXT,
            "destination": TEXT,
            "processes": NAMES,
            "initial_size": SIZE,
            "snapshot_retention": int,
            "scheduled_snapshots": SWITCH,
            "auto_extend_size_threshold": int,
            "auto_extend_size_increment": SIZE,
            "auto_extend_size_limit": SIZE,
        }
    ],
    "http_service": {
        "processes": NAMES,
        "internal_port": int,
        "force_https": SWITCH,
        "auto_stop_machines": {"off", "stop", "suspend"},
        "auto_start_machines": SWITCH,
        "min_machines_running": int,
        "concurrency": CONCURRENCY,
        "http_options": {"idle_timeout": int, "h2_backend": SWITCH, "response": dict},
        "tls_options": {"alpn": NAMES, "versions": NAMES, "default_self_signed": SWITCH},
        "checks": [CHECK],
        "machine_checks": [MACHINE_CHECK],
    },
    "vm": [VM],
    "restart": [{"policy": {"always", "never", "on-failure"}, "retries": int, "processes": NAMES}],
}


def problems(found: Any, allowed: Any, where: str = "") -> Iterator[str]:
    """Yield what is unknown, or not of its kind."""
    if isinstance(allowed, Mapping):
        if not isinstance(found, dict):
            yield f"{where} must be a table"
            return
        for key, value in found.items():
            name = f"{where}.{key}" if where else key
            if key in allowed:
                yield from problems(value, allowed[key], name)
            else:
                yield f"{name} is unknown"
    elif isinstance(allowed, list):
        if not isinstance(found, list):
            yield f"{where} must be an array of tables"
            return
        for value in found:
            yield from problems(value, allowed[0], where)
    elif isinstance(allowed, set):
        if found not in allowed or type(found) not in {type(value) for value in allowed}:
            yield f"{where} must be one of {allowed}"
    elif not isinstance(found, allowed) or (isinstance(found, bool) and allowed is not SWITCH):
        yield f"{where} must be of type {allowed}"


def read(path: Path) -> dict[str, Any]:
    text = re.sub(r"\{\{.*?\}\}", "name", path.read_text())
    return tomllib.loads(text)


every_file = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(TREE)))


def test_every_fly_toml_of_the_repository_is_looked_at() -> None:
    hidden = {".venv", ".venvs", ".demo", "node_modules"}
    found = {p for p in TREE.rglob("fly.toml") if not hidden & set(p.relative_to(TREE).parts)}

    assert found == set(FILES)


@every_file
def test_every_key_is_documented_and_of_its_kind(path: Path) -> None:
    assert list(problems(read(path), SCHEMA)) == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("kill_timeot = 30", "kill_timeot is unknown"),
        ("[http_services]\ninternal_port = 1", "http_services is unknown"),
        ("[http_service]\nauto_stop_machine = 'off'", "http_service.auto_stop_machine is unknown"),
        ("[[mounts]]\nauto_extend_threshold = 1", "mounts.auto_extend_threshold is unknown"),
        ("[[http_service.checks]]\ngrace = '1s'", "http_service.checks.grace is unknown"),
        ("[mounts]\nsource = 'data'", "mounts must be an array of tables"),
        ("[[vm]]\nmemory = true", "vm.memory must be of type"),
        ("[http_service]\nmin_machines_running = true", "http_service.min_machines_running must"),
        ("[http_service]\nauto_stop_machines = false", "http_service.auto_stop_machines must"),
        ("[deploy]\nstrategy = 'roling'", "deploy.strategy must be one of"),
    ],
)
def test_a_wrong_key_or_value_is_found(text: str, problem: str) -> None:
    [found] = problems(tomllib.loads(text), SCHEMA)

    assert found.startswith(problem)


@every_file
def test_it_is_one_machine_that_never_stops(path: Path) -> None:
    config = read(path)

    service = config["http_service"]
    assert service["auto_stop_machines"] == "off"
    assert service["auto_start_machines"] is True
    assert service["min_machines_running"] == 1
    assert config["restart"] == [{"policy": "always"}]
    assert "processes" not in config  # a second group would be a second machine
    assert "release_command" not in config["deploy"]  # it would run without the volume
    assert config["deploy"]["strategy"] == "rolling"  # the others need a second volume


@every_file
def test_the_volume_grows_and_is_snapshotted(path: Path) -> None:
    [mount] = read(path)["mounts"]

    assert mount["destination"] == "/data"
    assert 50 <= mount["auto_extend_size_threshold"] <= 90
    # Without both of these a volume does not grow.
    assert mount["auto_extend_size_increment"] == "1GB"
    assert mount["auto_extend_size_limit"] == "10GB"
    assert mount["scheduled_snapshots"] is True
    assert mount["snapshot_retention"] >= 7


@every_file
def test_it_is_killed_only_after_gunicorns_own_grace(path: Path) -> None:
    config = read(path)

    assert config["kill_signal"] == "SIGTERM"
    assert gunicorn.graceful_timeout < config["kill_timeout"] <= 300


@every_file
def test_it_takes_thousands_of_sockets_and_is_checked_at_up(path: Path) -> None:
    service = read(path)["http_service"]

    assert service["concurrency"]["type"] == "connections"
    assert 5_000 <= service["concurrency"]["soft_limit"] < service["concurrency"]["hard_limit"]
    [check] = service["checks"]
    assert check["path"] == "/up"


@pytest.mark.parametrize("path", FILES[:3], ids=lambda path: str(path.relative_to(TREE)))
def test_it_fits_the_dockerfile_beside_it(path: Path) -> None:
    config = read(path)
    dockerfile = (path.parent / config["build"]["dockerfile"]).read_text()
    [mount] = config["mounts"]

    assert f"\nVOLUME {mount['destination']}\n" in dockerfile
    assert f"LITESTACK_DATA_PATH={mount['destination']} " in dockerfile
    assert f"PORT={config['http_service']['internal_port']}\n" in dockerfile
    assert f"\nEXPOSE {config['http_service']['internal_port']}\n" in dockerfile


def test_they_differ_in_the_app_and_its_region_alone() -> None:
    configs = [read(path) for path in FILES]
    for config in configs:
        config.pop("app")
        config.pop("primary_region", None)

    assert all(config == configs[0] for config in configs)

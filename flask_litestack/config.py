"""The settings: every ``LITESTACK_*`` key of ``app.config``, its type, default and meaning."""

from __future__ import annotations

import dataclasses
import difflib
import os
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .errors import ConfigError

PREFIX = "LITESTACK_"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The values of one app. Times are in seconds, sizes in bytes."""

    data_path: Path
    """The folder of all files. Default: the environment's LITESTACK_DATA_PATH, else
    ``app.instance_path``. A relative path is taken from ``app.root_path``."""

    busy_timeout: float = 5.0
    """How long a transaction waits for the write lock before it fails."""

    synchronous: Literal["NORMAL", "FULL"] = "NORMAL"
    """NORMAL: a power cut may lose the last second of commits. FULL: it loses none."""

    guard: bool = True
    """Refuse to open() a live database file in this process, which would drop its locks."""

    production_warning: bool = True
    """Say in the log, when gunicorn starts, what is not fit for production."""

    up_token: str | None = None
    """What ``litestack.up()`` asks those for who want to see more than "up", with ``?verbose``.
    None: nobody sees it."""

    one_machine: bool = True
    """Refuse to serve on a machine of Fly.io while another one serves the app: its volume is
    another one, with other data."""

    cache_size: int = 128 * 1024 * 1024
    """The most that the cache's file and its write-ahead log may take, in bytes; at least 1 MiB."""

    cable_url: str | None = "/cable"
    """Where websockets and event streams connect, and cable.js is served. None: no cable."""

    cable_origins: tuple[str, ...] = ()
    """Origins that may connect besides the app's own host, such as "https://www.example.org".
    "*": all."""

    cable_max_clients: int | None = None
    """Open sockets per process beyond which a client gets 503. None: as many as the limit of
    open files allows, less a reserve for requests."""

    cable_max_message: int = 65_536
    """The largest message taken from a client."""

    cable_buffer: int = 262_144
    """What may wait for one slow client; a message can be half as large."""

    cable_ping_interval: float = 30.0
    """How often a client is asked whether it is still there; it is dropped after two silences."""

    cable_retention: float = 3600.0
    """How long a message is kept for clients that reconnect."""

    cable_log_size: int = 33_554_432
    """How much of the latest messages is kept for clients that reconnect."""

    cable_threads: int = 4
    """Threads of each process for channel functions, started on demand."""

    jobs_queues: tuple[str, ...] = ("*",)
    """The queues that a worker takes jobs from, the most urgent first. "*": all others."""

    jobs_threads: int = 4
    """Jobs that a worker process runs at the same time."""

    jobs_in_server: bool = True
    """Let one of the processes that ``flask litestack serve`` starts run jobs."""

    jobs_grace: float = 20.0
    """How long running jobs may take to end after SIGTERM, before they are put back."""

    jobs_keep_succeeded: float = 3600.0
    """How long a job is kept after it succeeded. 0: it is deleted at once."""

    jobs_keep_failed: float = 30 * 24 * 3600.0
    """How long a job is kept after it failed or was cancelled."""

    jobs_timezone: str = "UTC"
    """The time zone of ``cron=``, such as "Europe/Berlin"."""

    litestream_url: str | None = None
    """Where ``flask litestack litestream`` copies the database to: s3://bucket/blog,
    file:///mnt/backup/blog, or another address that Litestream knows."""

    litestream_interval: float = 1.0
    """What a lost disk may cost at most while that copy is made."""


def load(config: Mapping[str, Any], *, instance_path: str, root_path: str) -> Settings:
    """Read the settings from an app's configuration.

    :raises ConfigError: for an unknown key (the nearest known one is named) or a wrong type.
    """
    fields = {PREFIX + field.name.upper(): field for field in dataclasses.fields(Settings)}
    types = typing.get_type_hints(Settings)
    values: dict[str, Any] = {}
    for key, value in config.items():
        if not key.startswith(PREFIX):
            continue
        if key not in fields:
            raise ConfigError(_unknown(key, fields))
        name = fields[key].name
        values[name] = _checked(key, value, types[name])
    path = values.get("data_path") or os.environ.get(PREFIX + "DATA_PATH") or instance_path
    values["data_path"] = Path(root_path, path).absolute()
    return Settings(**values)


def _unknown(key: str, known: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0)
    return f"unknown setting {key}; did you mean {near[0]}? The known ones: {', '.join(known)}."


def _checked(key: str, value: Any, kind: Any) -> Any:
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        if value not in choices:
            raise ConfigError(f"{key} = {value!r} must be one of {', '.join(map(repr, choices))}.")
        return value
    if kind is Path:
        if not isinstance(value, (str, os.PathLike)) or not os.fspath(value):
            raise ConfigError(f"{key} = {value!r} must be the path of a folder.")
        return Path(value)
    if typing.get_origin(kind) is tuple:
        items = value.replace(",", " ").split() if isinstance(value, str) else value
        if not isinstance(items, (list, tuple)) or not all(isinstance(i, str) for i in items):
            raise ConfigError(f"{key} = {value!r} must be strings: a list, or one with commas.")
        return tuple(items)
    options = typing.get_args(kind) or (kind,)
    if value is None and type(None) in options:
        return None
    if float in options and type(value) is int:
        value = float(value)
    if str in options and type(value) is int:
        value = str(value)  # digits alone in an environment variable, which Flask reads as JSON
    if type(value) not in options:
        names = " or ".join(getattr(option, "__name__", str(option)) for option in options)
        raise ConfigError(f"{key} = {value!r} must be of type {names}, not {type(value).__name__}.")
    if type(value) in (int, float) and not 0 <= value < float("inf"):
        raise ConfigError(f"{key} = {value!r} must be a finite number of at least 0.")
    return value

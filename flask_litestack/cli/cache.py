"""``flask litestack cache``: what is in the cache, and how to empty it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import click

from ..cache.cache import Cache
from ..cache.counters import Statistics
from ..cache.file import NAME
from ..config import Settings
from ..errors import LitestackError
from ..extension import Litestack
from ..sqlite.health import Finding
from ._app import with_litestack
from ._output import json_option, show


@click.group
def command() -> None:
    """Look at the cache, or empty it."""


@command.command
@json_option
@with_litestack
def stats(litestack: Litestack, as_json: bool) -> None:
    """Show entries, bytes, hits, misses and evictions, of all processes together.

    Each process adds what it counted every ten seconds, and when it ends.
    """
    show(_report(litestack.cache.stats()), as_json)


@command.command
@with_litestack
def clear(litestack: Litestack) -> None:
    """Delete every entry, whatever its key. Running processes go on with an empty cache."""
    litestack.cache.sqlite.clear_all()
    click.echo("The cache is empty.")


def status(cache: Cache, settings: Settings) -> Mapping[str, Any]:
    """Say how full the cache is and how often it hits."""
    if not cache.is_sqlite:
        return {"backend": type(cache.cache).__name__}
    if not (settings.data_path / NAME).exists():
        return {"entries": 0}
    try:
        return _report(cache.stats())
    except LitestackError as error:
        return {"problem": str(error)}


def findings(cache: Cache, settings: Settings) -> Iterable[Finding]:
    """Find a file that the cache cannot use: an error of ours, which doctor reports."""
    if cache.is_sqlite and (settings.data_path / NAME).exists():
        cache.stats()
    return ()


def _report(found: Statistics) -> dict[str, Any]:
    rate = found.hit_rate
    return {
        **dataclasses.asdict(found),
        "hit_percent": None if rate is None else round(100 * rate, 1),
    }

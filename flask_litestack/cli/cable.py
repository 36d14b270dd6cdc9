"""``flask litestack cable``: talk to the browsers from the command line."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import click

from ..cable import Cable
from ..cable.store import FILE
from ..config import Settings
from ..extension import Litestack
from ._app import with_litestack


@click.group
def command() -> None:
    """Send messages to connected browsers."""


@command.command
@click.argument("channel")
@click.argument("data")
@click.option("--text", is_flag=True, help="DATA is plain text, not JSON.")
@with_litestack
def send(litestack: Litestack, channel: str, data: str, text: bool) -> None:
    """Broadcast DATA, which is JSON, to the subscribers of CHANNEL.

    Example: flask litestack cable send posts/7 '{"text": "hello"}'
    """
    try:
        message = data if text else json.loads(data)
    except ValueError as error:
        raise click.BadParameter(
            f"{error}. Give JSON, such as '\"hello\"', or use --text.", param_hint="DATA"
        ) from None
    litestack.cable.broadcast(channel, message)


def status(cable: Cable, settings: Settings) -> Mapping[str, Any]:
    """Say who is connected and how many messages are kept."""
    if not (settings.data_path / FILE).exists():
        return {"clients": 0, "messages": 0, "processes": []}
    found = cable.status()
    return {
        "clients": found.clients,
        "messages": found.messages,
        "processes": [dataclasses.asdict(process) for process in found.processes],
    }

"""What the hub wants of the app that it works for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from .clients import Client
from .store import Presence, Replay

#: Messages that a client which comes back can get at most.
MAX_REPLAY = 1000


@dataclass(frozen=True)
class Decision:
    """What became of a request to subscribe."""

    refused: str | None = None
    """The reason, for the client."""
    data: str | None = None
    """Initial data, as JSON."""
    presence: bool = False
    """Whether its members are counted."""
    tell_leave: bool = False
    """Whether :meth:`Backend.leave` is called at the end."""
    replay: Replay | None = None
    """What the log has after the client's ``since``."""


class Backend(Protocol):
    """The app's side. Everything but ``describe`` runs on the pool, in order for each client."""

    def subscribe(self, client: Client, channel: str, since: int | None) -> Decision:
        """Decide about a subscription."""

    def receive(self, client: Client, channel: str, data: Any) -> str | None:
        """Take a message; return the reason if it is refused."""

    def leave(self, client: Client, channel: str) -> None:
        """Note the end of a subscription."""

    def describe(self, channel: str, presence: Presence) -> str | None:
        """Make the JSON for subscribers who are told of each other; None for nothing."""

"""The public object: ``litestack.cable``."""

from __future__ import annotations

import atexit
import json
import logging
import os
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, ParamSpec, TypeVar

from flask import Flask, g, render_template
from markupsafe import Markup

from ..config import Settings
from ..db import Database
from ..errors import CableError, ConfigError
from ..perapp import PerApp, current_flask
from ..process.mutex import Mutex
from . import limits, script
from .channels import Channel, ChannelMap
from .handlers import USER, Handlers, dumps
from .handshake import check_origins
from .hub import Hub
from .store import HubStatus, Presence, RowKind, Store
from .view import add_routes

log = logging.getLogger(__name__)

P = ParamSpec("P")
Connect = TypeVar("Connect", bound=Callable[[], object])

#: Where rendered HTML can go, relative to its target; the words of htmx and insertAdjacentHTML.
SWAPS = (
    "innerHTML",
    "outerHTML",
    "beforebegin",
    "afterbegin",
    "beforeend",
    "afterend",
)

_cables: weakref.WeakSet[Cable] = weakref.WeakSet()


class Cable:
    """Broadcasts to the browsers that are connected to any process of the app."""

    def __init__(self, settings: Callable[[], Settings], database: Database) -> None:
        self._settings = settings
        self._database = database
        self._channels: list[Channel[Any]] = []
        self._connect: Callable[[], object] | None = None
        self._states = PerApp(self._make_state)
        self._mutex = Mutex()
        _cables.add(self)

    def init_app(self, app: Flask, settings: Settings) -> None:
        """Add the URL rules, and ``cable_script()`` to the templates.

        :raises ConfigError: for a wrong ``LITESTACK_CABLE_URL`` or ``LITESTACK_CABLE_ORIGINS``.
        """
        check_origins(settings.cable_origins)
        url = settings.cable_url
        if url is None:
            return
        if not url.startswith("/") or url.endswith("/") or "<" in url:
            raise ConfigError(f'LITESTACK_CABLE_URL = {url!r} must be a path like "/cable".')
        add_routes(app, url, self)
        app.jinja_env.globals["cable_script"] = script.tag

    # -- declaring ----------------------------------------------------------------------------

    def connect(self, function: Connect) -> Connect:
        """Decorate what says who a client is: a user key, or None for nobody in particular.

        It runs in the handshake's own request. Return False, or ``abort(403)``, to refuse.
        """
        self._connect = function
        return function

    def channel(
        self, pattern: str, *, presence: Literal["count", "users"] | None = None
    ) -> Callable[[Callable[P, object]], Channel[P]]:
        """Declare a channel, such as ``"posts/<int:post_id>"``.

        The decorated function is asked at each subscription, in the context of the client's
        handshake request. It returns True, or initial data for the client, or False to refuse;
        it may also raise :class:`~flask_litestack.Rejected` with a reason.

        :param presence: tell subscribers how many they are ("count"), or also who ("users").
        """

        def declare(function: Callable[P, object]) -> Channel[P]:
            channel = Channel(self, pattern, function, presence)
            self._channels.append(channel)
            return channel

        return declare

    # -- sending ------------------------------------------------------------------------------

    def broadcast(self, name: str, data: object) -> None:
        """Send JSON data to all subscribers of a channel, in whatever process they are.

        In a transaction it is sent after the commit, and not after a rollback.

        :raises ChannelError: if no channel of this name is declared.
        :raises CableError: if the data is larger than ``LITESTACK_CABLE_BUFFER``.
        :raises TypeError, ValueError: if the data cannot be JSON.
        """
        self._append(RowKind.MESSAGE, name, data)

    def render(
        self,
        name: str,
        template: str,
        /,
        *,
        target: str,
        swap: str = "beforeend",
        **context: Any,
    ) -> None:
        """Render a template and have cable.js put it into the subscribers' pages.

        An element in the page that has the id of the rendered one is replaced, so what a page
        shows already does not appear twice.

        :param target: a CSS selector.
        :param swap: where to put it: innerHTML, outerHTML, beforebegin, afterbegin, beforeend or
            afterend.
        :raises ChannelError, CableError: as :meth:`broadcast`.
        """
        if swap not in SWAPS:
            raise ValueError(f"swap={swap!r} must be one of {', '.join(SWAPS)}.")
        html = render_template(template, **context)
        self._append(RowKind.RENDER, name, {"html": html, "target": target, "swap": swap})

    def remove(self, name: str, target: str) -> None:
        """Have cable.js remove elements from the subscribers' pages.

        :param target: a CSS selector.
        """
        self._append(RowKind.RENDER, name, {"html": "", "target": target, "swap": "delete"})

    def disconnect(self, user: object) -> None:
        """Close all connections of a user, in all processes, e.g. at log-out.

        Their pages connect again by themselves, as whoever they are then. None and "" stand for
        nobody in particular: nothing is closed.
        """
        if user is None or user == "":
            return
        state = self._states.current()
        text = json.dumps(str(user))
        self._database.after_commit(lambda: state.store.append(RowKind.DISCONNECT, "", text))

    # -- asking -------------------------------------------------------------------------------

    def last_id(self) -> int:
        """Return the id after which a page must subscribe that shows the state read from now on.

        Call it **before** reading the state.
        """
        return self._states.current().store.last_id()

    def present(self, name: str) -> Presence:
        """Return who is on a channel that was declared with ``presence``.

        :raises ChannelError: if no such channel is declared.
        """
        state = self._states.current()
        state.channels.match(name)
        return state.store.present(name)

    @property
    def settings(self) -> Settings:
        """The settings of the current app."""
        return self._states.current().settings

    @property
    def user(self) -> str | None:
        """In a channel function: the key that the ``connect`` function returned."""
        user: str | None = g.get(USER)
        return user

    @property
    def clients(self) -> int:
        """How many clients are connected to this process."""
        hub = self._states.current().hub
        return 0 if hub is None else hub.clients

    def status(self) -> CableStatus:
        """Return the clients of all processes, some seconds old, and how much is kept."""
        store = self._states.current().store
        hubs = tuple(store.hubs())
        return CableStatus(sum(hub.clients for hub in hubs), hubs, store.messages())

    def script(self) -> Markup:
        """Return the script element that loads cable.js; in templates: ``cable_script()``."""
        return script.tag()

    # -- for the view and the server ----------------------------------------------------------

    def channel_name(self, channel: Channel[Any], params: Mapping[str, Any]) -> str:
        """Build a channel's name from its parameters."""
        return self._states.current().channels.name(channel, params)

    def who(self) -> str | bool:
        """Ask the ``connect`` function; False if it refuses, "" for nobody in particular."""
        found = None if self._connect is None else self._connect()
        if found is False:
            return False
        return "" if found is None or found is True else str(found)

    def hub(self) -> Hub:
        """Return the current app's hub in this process, started on first use.

        :raises OSError: EMFILE, if there are no descriptors left to start it.
        """
        state = self._states.current()
        with self._mutex:
            if state.hub is None:
                settings = state.settings
                state.hub = Hub(
                    state.store,
                    Handlers(current_flask(), state.channels, state.store, settings.cable_buffer),
                    capacity=limits.capacity(settings.cable_max_clients),
                    max_message=settings.cable_max_message,
                    buffer=settings.cable_buffer,
                    ping_interval=settings.cable_ping_interval,
                    threads=settings.cable_threads,
                )
            return state.hub

    def say_goodbye(self) -> None:
        """Send every client of this process away with 1001 and take no new ones; do not wait."""
        for state in self._states.values():
            if state.hub is not None:
                state.hub.say_goodbye()

    def upgrade(self) -> None:
        """Bring the tables, if they are there, to the version of this release.

        :raises NewerStoreError: if a release that this one cannot follow has upgraded them.
        """
        self._states.current().store.upgrade()

    def stop(self) -> None:
        """Send every client of this process away with 1001; takes a second at most."""
        for state in self._states.values():
            hub, state.hub = state.hub, None
            if hub is not None:
                hub.stop()
            state.store.close()

    def _append(self, kind: RowKind, name: str, data: object) -> None:
        state = self._states.current()
        state.channels.match(name)
        text = dumps(data)
        limit = state.settings.cable_buffer
        # A character takes four bytes at most, and is not counted where that is little enough.
        if len(text) * 8 > limit and (size := len(text.encode())) * 2 > limit:
            raise CableError(
                f"a message of {size} bytes for {name!r} is more than half of "
                f"LITESTACK_CABLE_BUFFER = {limit}; send a link to it, or raise the setting."
            )
        self._database.after_commit(lambda: state.store.append(kind, name, text))

    def _make_state(self, app: Flask) -> _State:
        settings = self._settings()
        store = Store(
            settings.data_path,
            retention=settings.cable_retention,
            size=settings.cable_log_size,
            guard=settings.guard,
        )
        return _State(settings, store, ChannelMap(self._channels, app.url_map.converters))

    def _after_fork_in_child(self) -> None:
        for state in self._states.values():
            if state.hub is not None:
                state.hub.after_fork()
                _inherited.append(state.hub)
                state.hub = None
            state.store.after_fork()


@dataclass(frozen=True)
class CableStatus:
    """What :meth:`Cable.status` returns."""

    clients: int
    processes: tuple[HubStatus, ...]
    messages: int
    """How many messages are kept for clients that come back."""


@dataclass
class _State:
    """What one app has in this process."""

    settings: Settings
    store: Store
    channels: ChannelMap
    hub: Hub | None = None


def say_goodbye() -> None:
    """Send every client of this process away at once; for the signal that ends a server."""
    for cable in list(_cables):
        cable.say_goodbye()


def stop_all() -> None:
    """Send every client of this process away; for a server's exit hook, and at exit."""
    for cable in list(_cables):
        cable.stop()


#: Hubs of the parent process, kept so that nothing of theirs is closed a second time.
_inherited: list[Hub] = []


def _after_fork_in_child() -> None:
    for cable in list(_cables):
        cable._after_fork_in_child()


atexit.register(stop_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)

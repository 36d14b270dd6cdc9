"""Runs the app's channel functions, each in the context of the client's handshake request."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flask import Flask, g, got_request_exception
from flask.json.provider import DefaultJSONProvider
from werkzeug.exceptions import HTTPException

from ..errors import ChannelError, Rejected
from .backend import MAX_REPLAY, Decision
from .channels import ChannelMap
from .clients import Client
from .handshake import restore
from .store import Presence, Store

log = logging.getLogger(__name__)

#: Where flask.g keeps the user key.
USER = "_litestack_cable_user"


class Handlers:
    """The hub's way into one app."""

    def __init__(self, app: Flask, channels: ChannelMap, store: Store, buffer: int) -> None:
        self._app = app
        self._channels = channels
        self._store = store
        self._largest = buffer // 2

    def subscribe(self, client: Client, channel: str, since: int | None) -> Decision:
        """Ask the channel function, then the log."""
        try:
            declared, params = self._channels.match(channel)
        except ChannelError:
            return Decision(refused="unknown channel")
        try:
            with self._context(client):
                answer = declared(**params)
                data = None if isinstance(answer, bool) or answer is None else dumps(answer)
        except Exception as error:
            return Decision(refused=self._reason(error))
        if answer is None:
            log.warning("%r returned None, which refuses; return True to let in", declared)
        if answer is None or answer is False:
            return Decision(refused="forbidden")
        if data is not None and (size := len(data.encode())) > self._largest:
            log.error(
                "%r returned %d bytes for %r, which is more than half of LITESTACK_CABLE_BUFFER: "
                "refused; return less, or raise the setting",
                declared,
                size,
                channel,
            )
            return Decision(refused="error")
        replay = None
        if since is not None:
            replay = self._store.replay(channel, since, limit=MAX_REPLAY, size=self._largest)
        return Decision(
            data=data,
            presence=declared.presence is not None,
            tell_leave=declared.leave_handler is not None,
            replay=replay,
        )

    def receive(self, client: Client, channel: str, data: Any) -> str | None:
        """Give a message to the channel's ``on_message`` function."""
        declared, params = self._channels.match(channel)
        if declared.message_handler is None:
            return "this channel takes no messages"
        try:
            with self._context(client):
                declared.message_handler(data, **params)
        except Exception as error:
            return self._reason(error)
        return None

    def leave(self, client: Client, channel: str) -> None:
        """Call the channel's ``on_leave`` function."""
        declared, params = self._channels.match(channel)
        if declared.leave_handler is not None:
            try:
                with self._context(client):
                    declared.leave_handler(**params)
            except Exception as error:
                self._reason(error)

    def describe(self, channel: str, presence: Presence) -> str | None:
        """Make what subscribers are told of each other, as their channel declares it."""
        try:
            declared, _ = self._channels.match(channel)
        except ChannelError:
            return None  # of another release that runs beside this one
        if declared.presence is None:
            return None
        if declared.presence == "users":
            text = json.dumps({"count": presence.count, "users": presence.users})
            if len(text) <= self._largest:  # all of it is ASCII
                return text
        return json.dumps({"count": presence.count})

    @contextmanager
    def _context(self, client: Client) -> Iterator[None]:
        with self._app.request_context(restore(client.environ)):
            setattr(g, USER, client.user or None)
            if self._app.preprocess_request() is not None:
                raise Rejected  # a before_request function answered, with a log-in page perhaps
            yield

    def _reason(self, error: Exception) -> str:
        """Say what the client is told; log what it is not."""
        if isinstance(error, Rejected):
            return error.reason
        if isinstance(error, HTTPException) and error.code is not None and error.code < 500:
            return error.name.lower()
        with self._app.app_context():
            got_request_exception.send(self._app, exception=error)
            self._app.logger.error("error in a channel function", exc_info=sys.exc_info())
        return "error"


def dumps(data: object) -> str:
    """Encode JSON with the current app's provider, without spaces and without NaN.

    :raises TypeError: for what is no JSON, :raises ValueError: for NaN.
    """
    from flask import current_app

    provider = current_app.json
    if not isinstance(provider, DefaultJSONProvider):
        return provider.dumps(data)
    options: dict[str, Any] = {"separators": (",", ":"), "allow_nan": False, "sort_keys": False}
    text = provider.dumps(data, ensure_ascii=False, **options)
    try:
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can only escape
        text = provider.dumps(data, ensure_ascii=True, **options)
    return text

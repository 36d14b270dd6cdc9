"""Declared channels: from a name to the function that decides, and from parameters to a name."""

from __future__ import annotations

import inspect
import re
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Generic, Literal, ParamSpec, TypeVar
from urllib.parse import unquote

from werkzeug.exceptions import HTTPException
from werkzeug.routing import BaseConverter, BuildError, Map, MapAdapter, RequestRedirect, Rule

from ..errors import ChannelError

if TYPE_CHECKING:
    from .cable import Cable
    from .store import Presence

P = ParamSpec("P")
Handler = TypeVar("Handler", bound=Callable[..., Any])

#: The longest name of a channel, in characters.
LONGEST_NAME = 255

_VARIABLE = re.compile(r"<(?:[^<>:]+(?:\([^<>]*\))?:)?([A-Za-z_]\w*)>")


class Channel(Generic[P]):
    """A family of channels, such as ``posts/<int:post_id>``. Made by ``litestack.channel()``.

    Calling it calls the decorated function.
    """

    def __init__(
        self,
        cable: Cable,
        pattern: str,
        authorise: Callable[P, object],
        presence: Literal["count", "users"] | None,
    ) -> None:
        self._signature = _check(pattern, authorise)
        self.pattern = pattern
        self.presence = presence
        self._cable = cable
        self._authorise = authorise
        self._message_handler: Callable[..., object] | None = None
        self._leave_handler: Callable[..., object] | None = None
        self.__doc__ = authorise.__doc__
        self.__name__ = getattr(authorise, "__name__", pattern)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> object:
        return self._authorise(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<Channel {self.pattern!r}>"

    def on_message(self, function: Handler) -> Handler:
        """Decorate what runs for each message of a subscriber: ``function(data, **params)``.

        It runs in the context of the subscriber's handshake request, messages of one connection
        in order. Raise :class:`~flask_litestack.Rejected` to answer with an error.
        """
        self._message_handler = function
        return function

    def on_leave(self, function: Handler) -> Handler:
        """Decorate what runs when a subscriber leaves, or is gone: ``function(**params)``.

        Not when the process ends: its subscribers come back to the next one.
        """
        self._leave_handler = function
        return function

    @property
    def message_handler(self) -> Callable[..., object] | None:
        """What :meth:`on_message` decorated."""
        return self._message_handler

    @property
    def leave_handler(self) -> Callable[..., object] | None:
        """What :meth:`on_leave` decorated."""
        return self._leave_handler

    def name(self, *args: P.args, **kwargs: P.kwargs) -> str:
        """Return the channel's name for these parameters: ``"posts/7"``.

        :raises ChannelError: if they do not fit the pattern.
        """
        params = self._signature.bind(*args, **kwargs).arguments
        return self._cable.channel_name(self, params)

    def broadcast(self, data: object, /, *args: P.args, **kwargs: P.kwargs) -> None:
        """Send JSON data to the subscribers; see :meth:`Cable.broadcast`."""
        self._cable.broadcast(self.name(*args, **kwargs), data)

    def present(self, *args: P.args, **kwargs: P.kwargs) -> Presence:
        """Return who is subscribed; see :meth:`Cable.present`."""
        return self._cable.present(self.name(*args, **kwargs))


class ChannelMap:
    """Finds declared channels by name; parameters are converted like those of a URL."""

    def __init__(
        self, channels: list[Channel[Any]], converters: Mapping[str, type[BaseConverter]]
    ) -> None:
        self._channels = channels
        self._converters = dict(converters)
        self._mutex = threading.Lock()
        self._known = 0
        self._adapter: MapAdapter | None = None

    def match(self, name: str) -> tuple[Channel[Any], dict[str, Any]]:
        """Find the channel of a name, and the parameters in it.

        :raises ChannelError: if there is none, or the name is spelt in an unusual way
            ("posts/07"), which no broadcast would ever reach.
        """
        if not name or len(name) > LONGEST_NAME:
            raise ChannelError(f"a channel's name has 1 to {LONGEST_NAME} characters.")
        try:
            name.encode()
            index, params = self._bound().match("/" + name, "GET")
        except (HTTPException, RequestRedirect, UnicodeEncodeError, ValueError):
            raise ChannelError(self._unknown(name)) from None
        channel = self._channels[index]
        if self._build(index, params) != name:
            raise ChannelError(self._unknown(name))
        return channel, dict(params)

    def name(self, channel: Channel[Any], params: Mapping[str, Any]) -> str:
        """Build a name.

        :raises ChannelError: if the parameters do not fit, or lead to another channel.
        """
        index = self._channels.index(channel)
        name = self._build(index, params)
        try:
            found = self.match(name) if name is not None else None
        except ChannelError:
            found = None
        if name is None or found is None or found[0] is not channel:
            raise ChannelError(f"{dict(params)!r} does not fit the channel {channel.pattern!r}.")
        return name

    def _build(self, index: int, params: Mapping[str, Any]) -> str | None:
        try:
            path = self._bound().build(index, dict(params), append_unknown=False)
        except (BuildError, ValueError, TypeError):
            return None
        return unquote(path)[1:]

    def _bound(self) -> MapAdapter:
        if self._adapter is None or self._known != len(self._channels):
            with self._mutex:
                # Endpoints are indexes: two functions may have one name.
                rules = [
                    Rule("/" + channel.pattern, endpoint=index)
                    for index, channel in enumerate(self._channels)
                ]
                known = Map(
                    rules,
                    converters=self._converters,
                    strict_slashes=True,
                    merge_slashes=False,
                    redirect_defaults=False,
                )
                self._adapter = known.bind("cable")
                self._known = len(rules)
        return self._adapter

    def _unknown(self, name: str) -> str:
        known = ", ".join(repr(channel.pattern) for channel in self._channels) or "none"
        return f"no channel is declared for the name {name!r}; the declared ones: {known}."


def _check(pattern: str, function: Callable[..., object]) -> inspect.Signature:
    """Raise where pattern and function cannot belong together; return how it is called."""
    if not pattern or pattern.startswith("/"):
        raise ValueError(f"a channel's pattern is like 'posts/<int:post_id>', not {pattern!r}.")
    variables = _VARIABLE.findall(pattern)
    try:
        signature = inspect.signature(function)
        signature.bind(**dict.fromkeys(variables))
    except TypeError as error:
        name = getattr(function, "__name__", repr(function))
        raise TypeError(
            f"{name}() must take the parameters of its channel {pattern!r}: {error}."
        ) from None
    return signature

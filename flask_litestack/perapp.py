"""One value for each Flask app: no extension object belongs to a single one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

from flask import Flask, current_app

from .process.mutex import Mutex

T = TypeVar("T")


def current_flask() -> Flask:
    """Return the current app itself, not the proxy that stands for it."""
    return current_app._get_current_object()  # type: ignore[attr-defined,no-any-return]


class PerApp(Generic[T]):
    """The values of the apps, each made when it is first asked for, by one thread.

    :param make: returns the value for an app; if it raises, it is asked again the next time.
    """

    def __init__(self, make: Callable[[Flask], T]) -> None:
        self._make = make
        self._values: WeakKeyDictionary[Flask, T] = WeakKeyDictionary()
        self._mutex = Mutex()

    def current(self) -> T:
        """Return the current app's value."""
        app = current_flask()
        value = self._values.get(app)
        if value is None:
            with self._mutex:
                value = self._values.get(app)
                if value is None:
                    value = self._values[app] = self._make(app)
        return value

    def values(self) -> list[T]:
        """Return the values that have been made."""
        return list(self._values.values())

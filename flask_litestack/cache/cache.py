"""``litestack.cache``: Flask-Caching's Cache, for several apps, with one caller who computes."""

from __future__ import annotations

import functools
import math
import time
import types
import weakref
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, TypeVar

import flask_caching
from flask import Flask, current_app
from flask_caching.backends.base import BaseCache
from flask_caching.utils import function_namespace

from ..errors import ConfigError
from ..perapp import current_flask
from .backend import Flight, SQLiteCache
from .counters import Statistics

T = TypeVar("T")

BACKEND = "flask_litestack.SQLiteCache"


class _PerApp:
    """An attribute that Flask-Caching sets on the shared object in init_app: one for each app."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, cache: Cache, owner: type) -> Any:
        return cache._options[self._name]

    def __set__(self, cache: Cache, value: Any) -> None:
        cache._options[self._name] = value


class Cache(flask_caching.Cache):
    """A ``flask_caching.Cache`` whose default backend is :class:`SQLiteCache`.

    Beyond Flask-Caching it has :meth:`get_or_set`, the options ``lock`` and ``stale`` of
    :meth:`cached` and :meth:`memoize`, and :meth:`stats`. With another ``CACHE_TYPE`` these work
    without protection from stampedes.
    """

    source_check: Any = _PerApp()
    enable_signals: Any = _PerApp()
    hash_method: Any = _PerApp()
    serializer: Any = _PerApp()

    def __init__(self, with_jinja2_ext: bool = True, config: dict[str, Any] | None = None) -> None:
        self._by_app: weakref.WeakKeyDictionary[Flask, dict[str, Any]] = weakref.WeakKeyDictionary()
        self._before_init: dict[str, Any] = {}
        self._initialising: Flask | None = None
        self._last: weakref.ref[Flask] | None = None
        super().__init__(None, with_jinja2_ext, config)

    def init_app(self, app: Flask, config: dict[str, Any] | None = None) -> None:
        """Register with an app. Opens nothing.

        :raises ConfigError: for a wrong ``LITESTACK_*`` setting.
        """
        config = {**(config or {})}
        if "CACHE_TYPE" not in {**app.config, **(self.config or {}), **config}:
            config["CACHE_TYPE"] = BACKEND
        self._by_app[app] = dict(self._before_init)
        self._initialising = app
        try:
            super().init_app(app, config)
        finally:
            self._initialising = None

    @property
    def app(self) -> Flask:
        """The current app, or outside of an app context the one that was last initialised."""
        app = self._app()
        if app is None:
            raise ConfigError("the cache needs an app context, or init_app(app).")
        return app

    @app.setter
    def app(self, app: Flask) -> None:
        self._last = weakref.ref(app)

    def get(self, *args: Any, **kwargs: Any) -> Any:
        """Return a value, or None: ``get(key)``."""
        call = _call.get()
        if call is None or call.cache is not self:
            return self.cache.get(*args, **kwargs)
        return call.get(*args, **kwargs)

    def set(self, *args: Any, **kwargs: Any) -> bool | None:
        """Store a value: ``set(key, value, timeout=None)``; see :meth:`SQLiteCache.set`."""
        call = _call.get()
        if call is None or call.cache is not self:
            return self.cache.set(*args, **kwargs)
        return call.set(*args, **kwargs)

    def set_many(self, *args: Any, **kwargs: Any) -> list[Any]:
        """Store several values: ``set_many({key: value}, timeout=None)``."""
        call = _call.get()
        if call is None or call.cache is not self:
            return self.cache.set_many(*args, **kwargs)
        return call.set_many(*args, **kwargs)

    def inc(self, key: str, delta: int = 1) -> int | None:
        """Add to a number, atomically across processes; see :meth:`SQLiteCache.inc`."""
        value: int | None = self.cache.inc(key, delta)
        return value

    def dec(self, key: str, delta: int = 1) -> int | None:
        """Subtract from a number; see :meth:`SQLiteCache.dec`."""
        value: int | None = self.cache.dec(key, delta)
        return value

    def get_or_set(
        self, key: str, function: Callable[[], T], timeout: Any = None, *, stale: float = 0
    ) -> T:
        """Return the value, computed by one caller if it is missing.

        See :meth:`SQLiteCache.get_or_set`.
        """
        backend: BaseCache = self.cache
        if isinstance(backend, SQLiteCache):
            return backend.get_or_set(key, function, timeout, stale=stale)
        value: T | None = backend.get(key)
        if value is None:
            value = function()
            backend.set(key, value, timeout)
        return value

    def cached(self, *args: Any, lock: bool = False, stale: float = 0, **options: Any) -> Any:
        """Cache what a view or function returns; the other options are Flask-Caching's.

        :param lock: if it is missing, one caller computes and the others wait for it.
        :param stale: for so many seconds after the timeout one caller computes anew, while the
            others get the old value at once.
        """
        args, options = _aside(args, options)
        return self._computing(super().cached(*args, **options), lock or stale > 0, stale)

    def memoize(self, *args: Any, lock: bool = False, stale: float = 0, **options: Any) -> Any:
        """Cache what a function returns for its arguments; options as of :meth:`cached`."""
        args, options = _aside(args, options)
        return self._computing(super().memoize(*args, **options), lock or stale > 0, stale)

    def delete_memoized(self, f: Any, *args: Any, **kwargs: Any) -> None:
        """Forget what a memoized function returned, for these arguments or for all."""
        if callable(f) and not args and not kwargs:
            # Deleted, not overwritten by a new version: only a delete waits for a commit, and
            # refuses what was computed before it.
            self.delete_memoized_verhash(f)
        else:
            super().delete_memoized(f, *args, **kwargs)

    def stats(self) -> Statistics:
        """Count entries, bytes, hits and evictions in the file.

        :raises ConfigError: with another ``CACHE_TYPE``.
        """
        return self.sqlite.stats()

    @property
    def is_sqlite(self) -> bool:
        """Whether the backend of the current app is ours."""
        return isinstance(self.cache, SQLiteCache)

    @property
    def sqlite(self) -> SQLiteCache:
        """The backend of the current app, if it is ours.

        :raises ConfigError: with another ``CACHE_TYPE``.
        """
        backend: BaseCache = self.cache
        if not isinstance(backend, SQLiteCache):
            raise ConfigError(
                f"CACHE_TYPE is {type(backend).__name__}; remove it to use the cache in "
                "cache.sqlite3."
            )
        return backend

    @property
    def _options(self) -> dict[str, Any]:
        app = self._initialising or self._app()
        return self._before_init if app is None else self._by_app.get(app, self._before_init)

    def _app(self) -> Flask | None:
        if current_app:
            return current_flask()
        return self._last() if self._last is not None else None

    def _memoize_version(
        self,
        f: Any,
        args: Any = None,
        kwargs: dict[str, Any] | None = None,
        reset: bool = False,
        delete: bool = False,
        refresh: bool = False,
        timeout: int | None = 0,
        args_to_ignore: list[str] | None = None,
    ) -> tuple[str, str] | tuple[str, None]:
        """Make the versions in a memoized function's key: the same for all who come at once.

        Flask-Caching's own overwrites the one that another caller has made meanwhile.
        """
        backend: BaseCache = self.cache
        if reset or delete or refresh or not isinstance(backend, SQLiteCache):
            return super()._memoize_version(
                f, args, kwargs, reset, delete, refresh, timeout, args_to_ignore
            )
        function, instance = function_namespace(f, args=args)
        names = [function]
        if instance and "self" not in (args_to_ignore or ()):
            names.append(instance)
        keys = [self._memvname(name) for name in names]
        versions = backend.get_many(*keys)
        if None in versions:
            for key, version in zip(keys, versions, strict=True):
                if version is None:
                    backend.add(key, self._memoize_make_version_hash(), timeout)
            versions = backend.get_many(*keys)
        return function, "".join(
            version or self._memoize_make_version_hash() for version in versions
        )

    def _computing(self, decorate: Callable[[Any], Any], lock: bool, stale: float) -> Any:
        def decorator(function: Callable[..., Any]) -> _Computed:
            @functools.wraps(function)
            def compute(*args: Any, **kwargs: Any) -> Any:
                # What the function itself caches is its own business.
                return _outside_call(self.app.ensure_sync(function), *args, **kwargs)

            caching = decorate(compute)
            caching.uncached = function
            return _Computed(self, caching, lock, stale)

        return decorator


class _Call:
    """One call of a cached function, from its first look-up to its last store."""

    def __init__(self, cache: Cache, backend: SQLiteCache, lock: bool, stale: float) -> None:
        self.cache = cache
        self.backend = backend
        self.stale = stale
        self.since = time.monotonic_ns()
        self._lock = lock
        self._flight: Flight | None = None

    def get(self, key: str) -> Any:
        if not self._lock or self._flight is not None:
            return self.backend.get(key)
        self._flight = self.backend.flight(key, self.stale)
        return self._flight.value

    def set(self, key: str, value: Any, timeout: Any = None) -> bool:
        stored = self.backend.set(key, value, timeout, stale=self.stale, since=self.since)
        if self._flight is not None and not stored:
            self._flight.give_up()
        return stored

    def set_many(self, mapping: dict[str, Any], timeout: Any = None) -> list[str]:
        """Store the versions in a memoized function's key, for as long as its stale values."""
        seconds = self.backend._normalize_timeout(timeout)
        if seconds > 0:
            seconds += math.ceil(self.stale)
        return self.backend.set_many(mapping, seconds, since=self.since)

    def end(self) -> None:
        if self._flight is not None:
            self._flight.end()


#: The call of a cached function that runs now; None inside of the function.
_call: ContextVar[_Call | None] = ContextVar("litestack_cached_call", default=None)


def _outside_call(function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call a function that may use the cache for itself."""
    token = _call.set(None)
    try:
        return function(*args, **kwargs)
    finally:
        _call.reset(token)


def _aside(
    args: tuple[Any, ...], options: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Let options of a decorator that are functions, such as ``key_prefix``, use the cache."""

    def aside(option: Any) -> Any:
        if not callable(option):
            return option
        return functools.wraps(option)(functools.partial(_outside_call, option))

    return tuple(map(aside, args)), {name: aside(option) for name, option in options.items()}


class _Computed:
    """A cached function: what Flask-Caching made of it, called as one :class:`_Call`."""

    _own = frozenset(("_cache", "_caching", "_lock", "_stale"))

    def __init__(self, cache: Cache, caching: Any, lock: bool, stale: float) -> None:
        self._cache = cache
        self._caching = caching
        self._lock = lock
        self._stale = stale
        functools.update_wrapper(self, caching.uncached, updated=())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        backend: BaseCache = self._cache.cache
        if not isinstance(backend, SQLiteCache):
            return self._caching(*args, **kwargs)
        call = _Call(self._cache, backend, self._lock, self._stale)
        token = _call.set(call)
        try:
            return self._caching(*args, **kwargs)
        finally:
            _call.reset(token)
            call.end()

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)

    def __reduce__(self) -> str:
        """Be pickled and copied as a function is: by its name in its module."""
        name: str = self.__qualname__
        return name

    # cache_timeout and make_cache_key are read by Flask-Caching from its own function.
    def __getattr__(self, name: str) -> Any:
        if name in self._own:  # not yet, while it is made without __init__
            raise AttributeError(name)
        return getattr(self._caching, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._own or name.startswith("__"):
            super().__setattr__(name, value)
        else:
            setattr(self._caching, name, value)

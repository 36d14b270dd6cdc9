"""The backend for Flask-Caching."""

from __future__ import annotations

import atexit
import logging
import os
import pickle
import time
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol, TypeVar

from flask import Flask, current_app, has_app_context
from flask_caching.backends.base import BaseCache

from .. import config as configuration
from ..errors import ConfigError, JobError, StoreError
from ..sqlite import driver
from .access import Access
from .counters import Statistics
from .deletes import Deletes
from .entries import FOR_EVER, LARGEST, ROW_BYTES, Entry, identify
from .file import LEAST_SIZE, is_busy, is_corrupt
from .leases import Context, Contexts, Wanted, watch_contexts
from .locks import KeyLocks, locks_at, pause
from .store import Store
from .unavailable import Closed, Replaced, Unavailable

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds for which a caller waits for another one's computation before it computes by itself.
PATIENCE = 10.0

#: Seconds for which everyone computes a value by themselves after it could not be stored.
HOPELESS = 1.0

#: Seconds for which a delete tries to get the file, before it throws the whole file away.
STUBBORN = 5.0

#: Seconds between two log lines about the same kind of trouble.
QUIET = 60.0

#: What keeps the cache from working, but must not keep the page from working. Not all errors of
#: ours: the timeout of a job is raised in the middle of whatever it does.
TROUBLE = (driver.Error, OSError, StoreError, ConfigError, Unavailable)

#: Seconds that all deletes of a commit have right before it, under the database's write lock.
HURRY = 0.2

#: Nanoseconds for which leases are refused after a delete that was prepared but not finished,
#: because the process was killed around its commit.
IN_DOUBT = 30 * 10**9

PROTOCOL = pickle.HIGHEST_PROTOCOL

#: The longest timeout in seconds, of 30,000 years: not each int is a time.
FAR = 10**12

_MISSING: Any = object()

#: Integers that SQLite stores, and adds to without leaving its 64 bits.
_SMALL = range(-(1 << 62), 1 << 62)


class Transactions(Protocol):
    """The part of ``litestack.db`` that deletes need."""

    def holds_changes(self) -> bool: ...

    def after_commit(
        self,
        function: Callable[[], object],
        *,
        before: Callable[[], object] | None = None,
        failed: Callable[[], object] | None = None,
    ) -> None: ...


class SQLiteCache(BaseCache):
    """A cache in one SQLite file, shared by every process of the machine.

    For Flask-Caching: ``CACHE_TYPE="flask_litestack.SQLiteCache"``. Values are pickled. No method
    raises because of the file: a locked, full, corrupt or missing one is a miss, or False, and a
    line in the log. A value that cannot be pickled raises what ``pickle`` raises.

    :param folder: the data folder.
    :param size: the cap in bytes on the file and its write-ahead log, at least 1 MiB.
    :param default_timeout: seconds; 0 is for ever.
    :param key_prefix: put before each key. ``clear()`` deletes the keys that have it.
    :param guard: refuse other ways to open the file in this process.
    :param transactions: returns the database whose open transaction a delete waits for, or None.
    :param clock: returns the Unix time.
    """

    def __init__(
        self,
        folder: Path,
        size: int = 128 << 20,
        default_timeout: int = 300,
        key_prefix: str = "",
        ignore_delete_many_errors: bool = False,
        guard: bool = True,
        transactions: Callable[[], Transactions | None] = lambda: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(default_timeout, ignore_delete_many_errors)
        if size < LEAST_SIZE:
            raise ConfigError(f"LITESTACK_CACHE_SIZE = {size} must be at least {LEAST_SIZE}.")
        self.key_prefix = key_prefix
        self._clock = clock
        self._transactions = transactions
        self._access = Access(folder, size, clock, guard)
        self._store = Store(self._access, clock)
        self._deletes = Deletes(self._access, clock)
        self._lock_path = folder / "run" / "cache.lock"
        self._largest = size * LARGEST
        self._contexts: Contexts[_Deletion] = Contexts()
        self._pending = self._contexts.waiting
        self._told: dict[str, float] = {}
        self._hopeless: dict[int, float] = {}
        _caches.add(self)

    @classmethod
    def factory(
        cls, app: Flask, config: dict[str, Any], args: list[Any], kwargs: dict[str, Any]
    ) -> SQLiteCache:
        """Make the backend of an app, as Flask-Caching asks for it. Opens nothing."""
        settings = configuration.load(
            config, instance_path=app.instance_path, root_path=app.root_path
        )
        options = {
            "size": settings.cache_size,
            "key_prefix": config.get("CACHE_KEY_PREFIX") or "",
            "guard": settings.guard,
            "transactions": _transactions,
            **kwargs,
        }
        watch_contexts(app)
        return cls(settings.data_path, *args, **options)

    # -- reading ------------------------------------------------------------------------------

    def get(self, key: str) -> Any:
        """Return a value, or None."""
        number, stored = identify(self.key_prefix + key)
        if self._pending and self._contexts.current().hides(number):
            return None
        try:
            value = self._store.get(number, stored, self._clock())
        except TROUBLE as error:
            self._complain("read", error)
            value = None
        if isinstance(value, bytes):
            try:
                return pickle.loads(value)
            except JobError:
                raise  # the timeout of the job that runs here
            except Exception as error:
                self._complain("unpickle", error)
                self._remove(number, stored, value)
                value = None
        if value is None:
            self._contexts.current().missed(number)
        return value

    def get_many(self, *keys: str) -> list[Any]:
        """Return the values of several keys, None for each that is missing."""
        wanted = self._identify(keys)
        context = self._contexts.current()
        try:
            stored = self._store.get_many(wanted, self._clock())
        except TROUBLE as error:
            self._complain("read", error)
            stored = [None] * len(wanted)
        values: list[Any] = []
        loads, pending = pickle.loads, self._pending
        for (number, key), value in zip(wanted, stored, strict=True):
            if value is None or (pending and context.hides(number)):
                context.missed(number)
                value = None
            elif value.__class__ is bytes:
                try:
                    value = loads(value)  # here rather than in _value(): that is a fifth slower
                except JobError:
                    raise
                except Exception:
                    value = self._value(number, key, value)
                    if value is _MISSING:
                        context.missed(number)
                        value = None
            values.append(value)
        return values

    def has(self, key: str) -> bool:
        """Tell whether a key is there, also if its value is None."""
        number, stored = identify(self.key_prefix + key)
        if self._pending and self._contexts.current().hides(number):
            return False
        try:
            return self._store.has(number, stored, self._clock())
        except TROUBLE as error:
            self._complain("read", error)
            return False

    # -- writing ------------------------------------------------------------------------------

    def set(
        self, key: str, value: Any, timeout: Any = None, *, stale: float = 0, since: int = 0
    ) -> bool:
        """Store a value.

        Returns False if it was not stored: because of trouble with the file, because the key was
        deleted after this context read what the value was computed from, or because this context
        has deleted it in a transaction that is still open.

        :param timeout: seconds, or a timedelta; default: ``default_timeout``; 0 is for ever.
        :param stale: seconds after the timeout for which get_or_set() may still return it.
        :param since: ``time.monotonic_ns()`` of the beginning of the computation of ``value``, if
            it is the result of one although no get() has missed.
        """
        entry = self._entry(key, value, timeout, stale)
        if entry is None:
            self.delete(key)
            return False
        context = self._contexts.current()
        number = entry.number
        if self._pending and context.hides(number):
            return False
        lease = context.lease(number, since)
        try:
            stored = self._store.put(entry, lease)
        except TROUBLE as error:
            self._complain("write", error)
            return False
        if lease is None:
            context.changed(number, time.monotonic_ns())
        return stored

    def set_many(
        self, mapping: dict[str, Any], timeout: Any = None, *, since: int = 0
    ) -> list[str]:
        """Store several values, in a few transactions; return the keys that were stored."""
        context = self._contexts.current()
        leased = []
        names = {}
        seconds = min(self._normalize_timeout(timeout), FAR)
        if seconds < 0:
            self.delete_many(*mapping)
            return []
        expires = self._clock() + seconds if seconds else FOR_EVER
        for key, value in mapping.items():
            entry = self._entry_until(key, value, expires, expires)
            if entry is None:
                self.delete(key)
            elif not (self._pending and context.hides(entry.number)):
                leased.append((entry, context.lease(entry.number, since)))
                names[entry.key] = key
        done: list[str] = []
        try:
            for stored in self._store.put_many(leased):
                done += (names[entry.key] for entry in stored)
        except TROUBLE as error:
            self._complain("write", error)  # what was stored before is there
        now = time.monotonic_ns()
        for entry, lease in leased:
            if lease is None:
                context.changed(entry.number, now)
        return done

    def add(self, key: str, value: Any, timeout: Any = None) -> bool:
        """Store a value unless the key is there; return whether it was stored."""
        entry = self._entry(key, value, timeout)
        context = self._contexts.current()
        if entry is None or (self._pending and context.hides(entry.number)):
            return False
        try:
            return self._store.add(entry, context.lease(entry.number), self._clock())
        except TROUBLE as error:
            self._complain("write", error)
            return False

    def inc(self, key: str, delta: int = 1) -> int | None:
        """Add to a number, for all processes at once; return the sum, None if it was not stored.

        The entry keeps its timeout. One that is missing or has expired starts anew with
        ``delta`` and the default timeout.
        """
        entry = self._entry(key, delta, None)
        now = self._clock()
        total: int | None = None

        def add(value: bytes | int | None) -> bytes | int:
            nonlocal total
            found = self._loads(value) if isinstance(value, bytes) else value
            total = (0 if found is _MISSING else found or 0) + delta
            data = self._entry(key, total, None)
            assert data is not None  # a number is not too large, and the default not negative
            return data.value

        if entry is None or (self._pending and self._contexts.current().hides(entry.number)):
            return None
        try:
            if isinstance(entry.value, int):
                total = self._store.increase(entry, now)
            if total is None:
                self._store.update(entry, now, add)
        except TROUBLE as error:
            self._complain("write", error)
            return None
        return total

    def dec(self, key: str, delta: int = 1) -> int | None:
        """Subtract from a number; see :meth:`inc`."""
        return self.inc(key, -delta)

    def get_or_set(
        self,
        key: str,
        function: Callable[[], T],
        timeout: Any = None,
        *,
        stale: float = 0,
    ) -> T:
        """Return the value, computed by ``function`` if it is missing: by one caller at a time.

        The others, in whatever thread or process, wait for it. If the computing process dies, the
        kernel lets the next one compute; after ten seconds of waiting everyone computes. A cached
        None is a value.

        :param timeout: as of :meth:`set`.
        :param stale: for so many seconds after the timeout one caller computes anew while the
            others get the old value at once.
        """
        flight = self.flight(key, stale)
        try:
            if flight.found:
                return flight.value  # type: ignore[no-any-return]
            since = time.monotonic_ns()
            value = function()
            if not self.set(key, value, timeout, stale=stale, since=since):
                flight.give_up()
            return value
        finally:
            flight.end()

    def flight(self, key: str, stale: float = 0) -> Flight:
        """Look a value up; if it is missing, return when it is this caller's turn to compute it."""
        number, stored = identify(self.key_prefix + key)
        locks = locks_at(self._lock_path)
        flight = Flight(locks, number, self._hopeless)
        began = time.monotonic()
        waited = 0.0
        while True:
            now = self._clock()
            row = self._look_up(number, stored, now, count=not waited)
            if row is not None and row[1] > now:
                return flight.take(row[0])
            if locks.is_mine(number):
                return flight  # the computation asks for its own result
            if flight.begin():
                # Someone may have stored it between our look and our turn.
                again = self._look_up(number, stored, now, count=False)
                if again is not None and again[1] > now:
                    flight.end()
                    return flight.take(again[0])
                self._contexts.current().missed(number)
                return flight
            if row is not None and stale:
                return flight.take(row[0])
            waited = time.monotonic() - began
            if waited > PATIENCE or self._hopeless.get(number, 0) > time.monotonic():
                self._contexts.current().missed(number)
                return flight
            pause(waited)

    # -- deleting -----------------------------------------------------------------------------

    def delete(self, key: str) -> bool:
        """Delete a key; return whether it was there.

        While the session of ``litestack.db`` has changes in this context that are not committed,
        others see the value until the commit, this context does not, and a rollback leaves it in
        place.
        """
        wanted = [identify(self.key_prefix + key)]
        if (transactions := self._waited_for()) is not None:
            there = self.has(key)
            self._delete_at_commit(transactions, wanted)
            return there
        return self._delete_now(wanted) > 0

    def delete_many(self, *keys: str) -> list[str]:
        """Delete several keys in one transaction; return those that are gone: all of them."""
        wanted = self._identify(keys)
        if (transactions := self._waited_for()) is not None:
            self._delete_at_commit(transactions, wanted)
        else:
            self._delete_now(wanted)
        return list(keys)

    #: What Flask-Caching calls for Redis; there is nothing faster than a delete here.
    unlink = delete_many

    def clear(self) -> bool:
        """Delete every key that begins with ``key_prefix``: with none, everything."""
        if (transactions := self._waited_for()) is not None:
            self._delete_at_commit(transactions, None)
            return True
        return self._clear_now()

    # -- the rest -----------------------------------------------------------------------------

    def stats(self) -> Statistics:
        """Count entries, bytes, hits and evictions. Walks through the file; for people.

        :raises StoreError: if the file cannot be read.
        """
        try:
            return self._access.statistics(self._clock())
        except (driver.Error, OSError, Unavailable) as error:
            raise StoreError(f"{self._access.file.path} cannot be read: {error}.") from error

    def clear_all(self) -> None:
        """Delete the file, also the entries of other prefixes, and give its space back.

        :raises StoreError: if the file cannot be deleted.
        """
        try:
            self._access.discard()
        except OSError as error:
            raise StoreError(f"{self._access.file.path} cannot be deleted: {error}.") from error

    def close(self) -> None:
        """Close the file; the next call opens it again. Nothing may be in use."""
        self._access.close()

    # -- helpers ------------------------------------------------------------------------------

    def _identify(self, keys: Iterable[str]) -> list[tuple[int, bytes]]:
        prefix = self.key_prefix
        return [identify(prefix + key) for key in keys]

    def _entry(self, key: str, value: Any, timeout: Any, stale: float = 0) -> Entry | None:
        """Return what to store, or None if it has expired already, or is too large."""
        seconds = self.default_timeout
        if timeout is not None:
            seconds = min(self._normalize_timeout(timeout), FAR)
        expires = self._clock() + seconds if seconds else FOR_EVER
        return self._entry_until(key, value, expires, expires + stale) if seconds >= 0 else None

    def _entry_until(self, key: str, value: Any, expires: float, kept: float) -> Entry | None:
        number, stored = identify(self.key_prefix + key)
        if type(value) is int and value in _SMALL:
            data: bytes | int = value  # so that SQLite can add to it
            size = len(stored) + ROW_BYTES
        else:
            data = pickle.dumps(value, PROTOCOL)
            size = len(stored) + ROW_BYTES + len(data)
            if size > self._largest:
                self._complain("store", ValueError(f"{key!r} takes {size} bytes"))
                return None
        return Entry(number, stored, expires, kept, data, size)

    def _look_up(
        self, number: int, stored: bytes, now: float, count: bool
    ) -> tuple[Any, float] | None:
        """Return a value and its expiry, also of one that is only kept to be served stale."""
        if self._pending and self._contexts.current().hides(number):
            return None
        try:
            row = self._store.get_kept(number, stored, now, count)
        except TROUBLE as error:
            self._complain("read", error)
            return None
        if row is None:
            return None
        value = self._value(number, stored, row[0])
        return None if value is _MISSING else (value, row[1])

    def _value(self, number: int, stored: bytes, data: bytes | int) -> Any:
        """Return what was stored, or ``_MISSING`` if it cannot be unpickled."""
        if not isinstance(data, bytes):
            return data
        value = self._loads(data)
        if value is _MISSING:
            self._remove(number, stored, data)
        return value

    def _loads(self, data: bytes) -> Any:
        try:
            return pickle.loads(data)
        except JobError:
            raise  # the timeout of the job that runs here
        except Exception as error:  # of the class's own code: it may be another release's
            self._complain("unpickle", error)
            return _MISSING

    def _remove(self, number: int, stored: bytes, data: bytes) -> None:
        """Delete a value that is of no use, so that has() does not count it as there."""
        try:
            self._deletes.remove(number, stored, data)
        except TROUBLE as trouble:
            self._complain("delete", trouble)

    def _waited_for(self) -> Transactions | None:
        transactions = self._transactions()
        return transactions if transactions is not None and transactions.holds_changes() else None

    def _delete_at_commit(self, transactions: Transactions, wanted: Wanted) -> None:
        deletion = _Deletion(self, self._contexts.current(), wanted)
        transactions.after_commit(
            deletion.finish, before=deletion.prepare, failed=deletion.call_off
        )

    def _delete_now(self, wanted: list[tuple[int, bytes]], prepared: int = 0) -> int:
        stamp = time.monotonic_ns()
        there = self._stubbornly(
            lambda: self._deletes.delete(wanted, self._clock(), stamp, prepared)
        )
        self._contexts.current().deleted(wanted, stamp)
        return there or 0

    def _clear_now(self, prepared: int = 0) -> bool:
        prefix = self.key_prefix.encode("utf-8", "surrogatepass")
        stamp = time.monotonic_ns()
        self._stubbornly(lambda: self._deletes.clear(prefix, self._clock(), stamp, prepared))
        self._contexts.current().deleted(None, stamp)
        return True

    def _prepare(self, wanted: Wanted) -> int:
        """Do the part of a delete that comes right before the commit; return its stamp."""
        prefix = self.key_prefix.encode("utf-8", "surrogatepass")
        stamp = time.monotonic_ns() + IN_DOUBT
        for _ in range(2):
            until = time.monotonic() + HURRY
            try:
                if wanted is None:
                    self._deletes.clear(prefix, self._clock(), stamp, until=until)
                else:
                    self._deletes.delete(wanted, self._clock(), stamp, until=until)
                break
            except TROUBLE as error:
                self._complain("prepare a delete", error)
                if wanted is not None:
                    break  # it is tried again after the commit
                self._discard()  # faster than row by row
        return stamp

    def _call_off(self, wanted: Wanted, prepared: int) -> None:
        """Undo what :meth:`_prepare` did for the time after it: there was no commit."""
        stamp = time.monotonic_ns()
        try:
            self._deletes.lower(wanted, self._clock(), stamp, prepared)
        except TROUBLE as error:
            self._complain("call a delete off", error)  # its stamp is past in half a minute
        self._contexts.current().deleted(wanted, stamp)

    def _stubbornly(self, delete: Callable[[], T]) -> T | None:
        """Delete, whatever it takes: what stays would be served stale."""
        deadline = time.monotonic() + STUBBORN
        while True:
            try:
                return delete()
            except TROUBLE as error:
                again = is_busy(error) or is_corrupt(error) or isinstance(error, Replaced)
                if again and time.monotonic() < deadline:
                    time.sleep(0.01)
                    continue
                self._complain("delete, so it is thrown away", error)
                self._discard()
                return None

    def _discard(self) -> None:
        try:
            self._access.discard()
        except TROUBLE as error:
            log.error("the cache may serve stale values: %s", error)

    def _complain(self, what: str, error: BaseException) -> None:
        if isinstance(error, Closed):
            return  # it was told why when it could not be opened
        now = time.monotonic()
        kind = f"{type(error).__name__} {driver.error_code(error)}"
        if now - self._told.get(kind, -QUIET) >= QUIET:
            self._told[kind] = now
            log.warning("the cache cannot %s: %s", what, error)

    def _after_fork(self) -> None:
        self._access.after_fork()


class Flight:
    """A look-up that has a value, or the turn to compute it."""

    def __init__(self, locks: KeyLocks, number: int, hopeless: dict[int, float]) -> None:
        self._locks = locks
        self._number = number
        self._hopeless = hopeless
        self._pid = 0
        self.found = False
        self.value: Any = None

    def take(self, value: Any) -> Flight:
        """Have a value."""
        self.found = True
        self.value = value
        return self

    def begin(self) -> bool:
        """Try to have the turn. Without a lock file everyone has."""
        try:
            mine = self._locks.acquire(self._number)
        except (OSError, ImportError):
            return True
        if mine:
            self._pid = os.getpid()
        return mine

    def give_up(self) -> None:
        """Note that the value was not stored: taking turns, each would wait for all before it."""
        if len(self._hopeless) > 1000:
            self._hopeless.clear()
        self._hopeless[self._number] = time.monotonic() + HOPELESS

    def end(self) -> None:
        """Let the next one compute."""
        if self._pid == os.getpid():
            self._locks.release(self._number)
        self._pid = 0


class _Deletion:
    """A delete, or for ``wanted=None`` a clear, that waits for the commit.

    Right before the commit the entries are deleted and leases refused altogether; right after it
    only those that are older. So nobody who sees the commit can see the entries, and a process
    that is killed between leaves none behind. The first one of a commit does this for all that
    wait for the same.
    """

    def __init__(
        self,
        cache: SQLiteCache,
        context: Context[_Deletion],
        wanted: Wanted,
    ) -> None:
        self.wanted = wanted
        self._cache = cache
        self._context = context
        self._prepared = 0
        self._waits = True
        self._show = context.hide(self)

    def prepare(self) -> None:
        if not self._prepared:
            together = self._context.waiting()
            prepared = self._cache._prepare(_union(together))
            for deletion in together:
                deletion._prepared = prepared

    def finish(self) -> None:
        if self._waits:
            wanted, prepared = self._end()
            if wanted is None:
                self._cache._clear_now(prepared)
            else:
                self._cache._delete_now(wanted, prepared)

    def call_off(self) -> None:
        if self._waits:
            wanted, prepared = self._end()
            if prepared:
                self._cache._call_off(wanted, prepared)

    def _end(self) -> tuple[Wanted, int]:
        """Let all that wait for the same commit wait no longer; return what they are to delete."""
        together = self._context.waiting()
        for deletion in together:
            deletion._waits = False
            deletion._show()
        return _union(together), max(deletion._prepared for deletion in together)


def _union(deletions: list[_Deletion]) -> Wanted:
    wanted: dict[tuple[int, bytes], None] = {}
    for deletion in deletions:
        if deletion.wanted is None:
            return None
        wanted.update(dict.fromkeys(deletion.wanted))
    return list(wanted)


def _transactions() -> Transactions | None:
    """The database of the current app's Litestack object."""
    if not has_app_context():
        return None
    return getattr(current_app.extensions.get("litestack"), "db", None)


_caches: weakref.WeakSet[SQLiteCache] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for cache in list(_caches):
        cache._after_fork()


@atexit.register
def _flush_counters() -> None:
    for cache in list(_caches):
        if cache._access.pool.all:
            try:
                cache._access.flush(time.time())
            except TROUBLE:
                log.debug("the counters of the cache are not written", exc_info=True)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)

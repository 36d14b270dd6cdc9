"""The entries: how they are read and stored."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

from ..sqlite import driver, fork
from .access import BATCH, LOOK, Access
from .connections import Connection
from .entries import LAST, Entry
from .file import ALL, PAGE, SLOTS, is_full
from .recency import GENERATION, HEAD, NOW

#: Tries to store an entry in a file that is at its cap.
ATTEMPTS = 4


class Store:
    """The entries of a cache file. Errors of SQLite pass through; the caller makes them misses.

    :param clock: returns the Unix time.
    """

    def __init__(self, access: Access, clock: Callable[[], float]) -> None:
        self._access = access
        self._room = access.room
        self._clock = clock

    # -- reading ------------------------------------------------------------------------------

    def get(self, number: int, key: bytes, now: float) -> bytes | int | None:
        """Return the stored value, or None for a miss."""
        # Every cache hit runs through here, so this is written for speed: the key is compared
        # here rather than by SQLite, and the calls of the other methods are spelt out.
        access = self._access
        table = access.table
        if not access.looked_at <= now < access.looked_at + LOOK or (
            table[GENERATION] != access.generation
        ):
            access.look(now)
        try:
            connection = access.pool.idle.pop()
        except IndexError:
            connection = access.open(now)
        try:
            connection.inside = True
            if fork.pending:
                connection.wait_for_fork()
            row = connection.run(
                "SELECT value, key FROM entries WHERE id = ? AND expires > ?", (number, now)
            ).fetchone()
            if row is None or row[1] != key:
                connection.misses += 1
                return None
            connection.hits += 1
            table = access.table  # it may have been mapped just now
            table[HEAD + (number & access.mask)] = table[NOW] | 1
            value: bytes | int = row[0]
            return value
        except driver.Error as error:
            access.failed(connection, error)
            raise
        finally:
            connection.inside = False
            connection.home.append(connection)

    def get_kept(
        self, number: int, key: bytes, now: float, count: bool
    ) -> tuple[bytes | int, float] | None:
        """Return value and expiry of an entry, also of one that is only kept to be served stale.

        :param count: whether it counts as a hit, or as a miss if it is not there or has expired.
        """
        with self._access.taken(now) as connection:
            row: tuple[bytes | int, float] | None = connection.run(
                "SELECT value, expires FROM entries WHERE id = ? AND key = ? AND kept > ?",
                (number, key, now),
            ).fetchone()
            if row is not None:
                self._access.recency.read(number)
            if count:
                hit = row is not None and row[1] > now
                connection.hits += hit
                connection.misses += not hit
            return row

    def has(self, number: int, key: bytes, now: float) -> bool:
        """Tell whether an entry is there. Counts neither as a hit nor as a use."""
        with self._access.taken(now) as connection:
            row = connection.execute(
                "SELECT 1 FROM entries WHERE id = ? AND key = ? AND expires > ?",
                (number, key, now),
            ).fetchone()
            return row is not None

    def get_many(self, wanted: Sequence[tuple[int, bytes]], now: float) -> list[bytes | int | None]:
        """Return the values in the same order, None for each that is missing."""
        values: list[bytes | int | None] = []
        with self._access.taken(now) as connection:
            table, mask = self._access.table, self._access.mask
            stamp = table[NOW] | 1
            misses = 0
            for start in range(0, len(wanted), BATCH):
                batch = wanted[start : start + BATCH]
                numbers = [number for number, _ in batch]
                rows = connection.run(_get_many_sql(len(batch)), (*numbers, now)).fetchall()
                for (number, key), (found, value) in zip(batch, rows, strict=True):
                    if found == key:  # and not another key of the same hash
                        table[HEAD + (number & mask)] = stamp
                        values.append(value)
                    else:
                        misses += 1
                        values.append(None)
            connection.hits += len(wanted) - misses
            connection.misses += misses
        return values

    # -- writing ------------------------------------------------------------------------------

    def put(self, entry: Entry, lease: int | None) -> bool:
        """Store an entry.

        False if its key was deleted after the lease began, or set with a newer one or without.
        """
        if lease is None:
            changed, _ = self._write(_PUT, (*entry, time.monotonic_ns()), entry)
        else:
            changed, _ = self._write(_PUT_LEASED, (*entry, lease), entry)
        return changed

    def add(self, entry: Entry, lease: int | None, now: float) -> bool:
        """Store an entry unless its key is there."""
        written = time.monotonic_ns() if lease is None else lease
        changed, _ = self._write(
            _ADD, (*entry, LAST if lease is None else lease, now, written), entry
        )
        return changed

    def increase(self, entry: Entry, now: float) -> int | None:
        """Add an integer to the one that is there, or store it if there is no entry.

        Returns the sum; None if what is there is not a small integer.
        """
        _, rows = self._write(_INCREASE, (*entry, time.monotonic_ns(), now, _INT64), entry)
        return rows[0][0] if rows else None

    def update(
        self, entry: Entry, now: float, change: Callable[[bytes | int | None], bytes | int]
    ) -> None:
        """Store ``change(the present value, or None)`` in one transaction.

        :param entry: what is stored if nothing is there, but for its value.
        """
        with self._access.writing(now, bounded=True) as connection:
            row = connection.execute(
                "SELECT value, expires, kept FROM entries WHERE id = ? AND key = ? AND expires > ?",
                (entry.number, entry.key, now),
            ).fetchone()
            if row:
                entry = entry._replace(value=change(row[0]), expires=row[1], kept=row[2])
            else:
                entry = entry._replace(value=change(None))
            cursor = connection.execute(_PUT, (*entry, time.monotonic_ns()))
            self._room.wrote(connection, entry, cursor.lastrowid)
            self._room.pay(connection, entry)

    def put_many(self, entries: Sequence[tuple[Entry, int | None]]) -> Iterator[list[Entry]]:
        """Store entries with their leases; yield those of each transaction that were stored."""
        for batch in self._batches(entries):
            size = sum(entry.size for entry, _ in batch)
            for attempt in range(ATTEMPTS):
                try:
                    if attempt:  # in a transaction of its own, or the WAL would hold both
                        with self._access.writing(self._clock(), bounded=True) as connection:
                            self._room.evict_much(connection, batch[0][0], size, attempt)
                    with self._access.writing(self._clock(), bounded=True) as connection:
                        stored = self._put_batch(connection, batch)
                    break
                except driver.OperationalError as error:
                    with self._access.taken(self._clock()) as connection:
                        by_cap = is_full(error) and not self._room.has_room(connection, size)
                    if not by_cap or attempt == ATTEMPTS - 1:
                        raise
            yield stored

    def _batches(
        self, entries: Sequence[tuple[Entry, int | None]]
    ) -> Iterator[Sequence[tuple[Entry, int | None]]]:
        """Cut entries into transactions that the WAL has room for."""
        most, room = self._access.file.batch(BATCH), self._access.file.wal_pages * PAGE // 2
        start = size = 0
        for i, (entry, _) in enumerate(entries):
            if i > start and (i - start == most or size + entry.size > room):
                yield entries[start:i]
                start, size = i, 0
            size += entry.size
        if entries:
            yield entries[start:]

    def _put_batch(
        self, connection: Connection, batch: Sequence[tuple[Entry, int | None]]
    ) -> list[Entry]:
        before = self._count(connection, batch) if self._room.is_short else 0
        stamp = time.monotonic_ns()
        connection.executemany(_PUT, [(*entry, stamp) for entry, lease in batch if lease is None])
        stored = [entry for entry, lease in batch if lease is None]
        for entry, lease in batch:
            if lease is None:
                continue
            if connection.run(_PUT_LEASED, (*entry, lease)).rowcount > 0:
                stored.append(entry)
            else:
                connection.refused += 1
        self._room.wrote_many(connection, stored, len(stored) - before, batch[0][0])
        return stored

    def _count(self, connection: Connection, batch: Sequence[tuple[Entry, int | None]]) -> int:
        """Return how many of the entries are there, so that they will only be updated."""
        sql = f"SELECT count(*) FROM entries WHERE id IN ({', '.join('?' * len(batch))})"
        row = connection.run(sql, [entry.number for entry, _ in batch]).fetchone()
        return int(row[0])

    # -- one statement ------------------------------------------------------------------------

    def _write(
        self, sql: str, bound: tuple[object, ...], entry: Entry
    ) -> tuple[bool, list[tuple[int]]]:
        """Run one statement that stores an entry; return whether it did, and what it returned."""
        now = self._clock()
        access = self._access
        access.take_turn(now)
        try:
            connection = access.take(now)
            try:
                connection.inside = True
                if fork.pending:
                    connection.wait_for_fork()
                access.wal.refuse_if_pinned(connection)
                try:
                    if self._room.owed_rows:
                        result = self._write_crowded(connection, sql, bound, entry)
                    else:
                        result = self._write_once(connection, sql, bound, entry)
                except driver.OperationalError as error:
                    result = self._write_full(connection, sql, bound, entry, error)
                self._room.settle(connection)
                return result
            except driver.Error as error:
                access.failed(connection, error)
                raise
            finally:
                try:
                    if connection.in_transaction:  # interrupted, by the timeout of a job, say
                        connection.execute("ROLLBACK")
                finally:
                    connection.inside = False
                    connection.home.append(connection)
        finally:
            access.mutex.release()

    def _write_once(
        self, connection: Connection, sql: str, bound: tuple[object, ...], entry: Entry
    ) -> tuple[bool, list[tuple[int]]]:
        cursor = connection.run(sql, bound)
        # rowcount of a RETURNING is not the same in all versions of the driver
        rows = cursor.fetchall() if sql is _INCREASE else []
        changed = cursor.rowcount > 0 or bool(rows)
        if changed:
            self._room.wrote(connection, entry, cursor.lastrowid)
        elif sql is _PUT_LEASED:
            connection.refused += 1
        return changed, rows

    def _write_crowded(
        self, connection: Connection, sql: str, bound: tuple[object, ...], entry: Entry
    ) -> tuple[bool, list[tuple[int]]]:
        """Write to a full file: evict first, if enough is owed."""
        if not self._room.is_due():
            return self._write_once(connection, sql, bound, entry)
        connection.run("BEGIN IMMEDIATE")
        self._room.pay(connection, entry)
        result = self._write_once(connection, sql, bound, entry)
        connection.run("COMMIT")
        return result

    def _write_full(
        self,
        connection: Connection,
        sql: str,
        bound: tuple[object, ...],
        entry: Entry,
        error: driver.OperationalError,
    ) -> tuple[bool, list[tuple[int]]]:
        """Try again in a file that has met its cap, evicting more each time."""
        for attempt in range(ATTEMPTS):
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            if not is_full(error) or self._room.has_room(connection, entry.size):
                break  # nothing of the file, or it is the disk that is full
            try:
                connection.run("BEGIN IMMEDIATE")
                self._room.evict_much(connection, entry, entry.size, attempt)
                connection.run("COMMIT")
                return self._write_once(connection, sql, bound, entry)
            except driver.OperationalError as again:
                error = again
        raise error


@lru_cache(maxsize=128)
def _get_many_sql(count: int) -> str:
    # Not IN: so there is a row for each id, in their order.
    return (
        f"WITH wanted (id) AS (VALUES {', '.join(['(?)'] * count)}) "
        "SELECT key, value FROM wanted LEFT JOIN entries "
        "ON entries.id = wanted.id AND expires > ?"
    )


#: Numbers below this can be added without leaving SQLite's 64 bits.
_INT64 = 1 << 62

# The parameters of all are those of an Entry, then ?7 the lease, or the time.
_COLUMNS = "INSERT INTO entries (id, key, expires, kept, value, written)"
_REPLACE = (
    "ON CONFLICT (id) DO UPDATE SET key = excluded.key, expires = excluded.expires, "
    "kept = excluded.kept, value = excluded.value, written = excluded.written"
)
_NOT_DELETED_SINCE = (
    f"WHERE NOT EXISTS (SELECT 1 FROM deletes WHERE slot IN ({ALL}, ?1 & {SLOTS - 1}) "
    "AND stamp >= ?7)"
)
_PUT = f"{_COLUMNS} VALUES (?1, ?2, ?3, ?4, ?5, ?7) {_REPLACE}"
_PUT_LEASED = (
    f"{_COLUMNS} SELECT ?1, ?2, ?3, ?4, ?5, ?7 {_NOT_DELETED_SINCE} {_REPLACE} "
    "WHERE written <= ?7 OR key <> excluded.key"
)
_ADD = (
    f"{_COLUMNS} SELECT ?1, ?2, ?3, ?4, ?5, ?9 {_NOT_DELETED_SINCE} {_REPLACE} "
    "WHERE expires <= ?8 OR key <> excluded.key"
)
_INCREASE = (
    f"{_COLUMNS} VALUES (?1, ?2, ?3, ?4, ?5, ?7) ON CONFLICT (id) DO UPDATE SET "
    "value = iif(key = excluded.key AND expires > ?8, value, 0) + excluded.value, "
    "expires = iif(key = excluded.key AND expires > ?8, expires, excluded.expires), "
    "kept = iif(key = excluded.key AND expires > ?8, kept, excluded.kept), "
    "key = excluded.key, written = excluded.written "
    "WHERE key <> excluded.key OR expires <= ?8 "
    "OR (typeof(value) = 'integer' AND value BETWEEN -?9 AND ?9) RETURNING value"
)

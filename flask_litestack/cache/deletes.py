"""How entries are deleted, and values refused that were computed before.

A delete leaves a stamp in the slot of its key, a clear in the slot of all: a set whose lease is
not newer is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .access import BATCH, Access
from .entries import FIRST, LAST
from .file import ALL, SLOTS


class Deletes:
    """The deletes from a cache file. Errors of SQLite pass through.

    :param clock: returns the Unix time.
    """

    def __init__(self, access: Access, clock: Callable[[], float]) -> None:
        self._access = access
        self._room = access.room
        self._clock = clock

    def delete(
        self,
        wanted: Sequence[tuple[int, bytes]],
        now: float,
        stamp: int,
        prepared: int = 0,
        until: float | None = None,
    ) -> int:
        """Delete entries; return how many were there.

        :param stamp: the monotonic time in ns up to which leases on them are refused.
        :param prepared: the stamp of an earlier call that this one replaces.
        :param until: when to give up, on the clock of ``time.monotonic()``.
        :raises Unavailable: at ``until``, with a part of it done.
        """
        there = 0
        for start in range(0, len(wanted), BATCH):
            batch = wanted[start : start + BATCH]
            with self._access.writing(now, until=until) as connection:
                cursor = connection.cursor()
                for number, key in batch:
                    cursor.execute(_DELETED, (number & (SLOTS - 1), stamp, prepared))
                    rows = cursor.execute(
                        "DELETE FROM entries WHERE id = ? AND key = ? RETURNING expires",
                        (number, key),
                    ).fetchall()
                    there += bool(rows) and rows[0][0] > now
                self._room.deleted(len(batch))
        return there

    def remove(self, number: int, key: bytes, value: bytes) -> None:
        """Delete an entry if it still has a value. Leases on it stay good."""
        with self._access.writing(self._clock()) as connection:
            connection.execute(
                "DELETE FROM entries WHERE id = ? AND key = ? AND value = ?", (number, key, value)
            )

    def lower(
        self, wanted: Sequence[tuple[int, bytes]] | None, now: float, stamp: int, prepared: int
    ) -> None:
        """Put a lower stamp in the place of one of :meth:`delete`, or for None of a clear."""
        slots = {ALL} if wanted is None else {number & (SLOTS - 1) for number, _ in wanted}
        with self._access.writing(now) as connection:
            connection.executemany(
                "UPDATE deletes SET stamp = ? WHERE slot = ? AND stamp = ?",
                [(stamp, slot, prepared) for slot in slots],
            )

    def clear(
        self,
        prefix: bytes,
        now: float,
        stamp: int,
        prepared: int = 0,
        until: float | None = None,
    ) -> None:
        """Delete every entry whose key begins with ``prefix``, a few at a time.

        The parameters are as of :meth:`delete`; the stamps hold for every key.
        """
        with self._access.writing(now, until=until) as connection:
            connection.execute(_DELETED, (ALL, stamp, prepared))
            if not prefix:
                connection.execute("DELETE FROM entries")
                return
        after: int | None = FIRST
        while after is not None:
            with self._access.writing(now, until=until) as connection:
                (upto,) = connection.execute(
                    "SELECT max(id) FROM "
                    "(SELECT id FROM entries WHERE id >= ? ORDER BY id LIMIT ?)",
                    (after, BATCH),
                ).fetchone()
                connection.execute(
                    "DELETE FROM entries WHERE id BETWEEN ? AND ? AND substr(key, 1, ?) = ?",
                    (after, upto, len(prefix), prefix),
                )
            after = None if upto is None or upto == LAST else upto + 1


#: ?1 slot, ?2 stamp, ?3 the stamp it replaces. What another delete has prepared stays.
_DELETED = "UPDATE deletes SET stamp = iif(stamp = ?3, ?2, max(stamp, ?2)) WHERE slot = ?1"

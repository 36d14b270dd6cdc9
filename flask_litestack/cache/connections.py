"""The connections of a process to one cache file.

A pool, not one connection per thread: a thread that ends (the development server has one per
request) would take its connection along. The last one given back is the next one taken, so a
process has as many as it ever used at the same time.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..sqlite import driver, fork, guard

#: SQLite's page cache of each connection, in KiB.
PAGE_CACHE_KIB = 4 * 1024

#: Prepared statements kept by each connection.
STATEMENTS = 64


class Connection(driver.Connection):
    """A connection, and what was counted on it. Used by one thread at a time.

    Whoever uses it sets ``inside`` first and looks at ``fork.pending`` then: a fork waits until
    nobody is inside SQLite, and a forked child closes what it inherits (see the module fork).
    """

    inside = False
    """Whether it is in use, by whichever thread."""

    hits = 0
    misses = 0
    writes = 0
    refused = 0
    evictions = 0

    automatic = True
    """Whether SQLite checkpoints by itself when a commit finds the WAL large."""

    inserted = 0
    """The id of the last entry that was inserted rather than updated."""

    home: list[Connection]
    """The idle connections that it belongs to: of one process and one file."""

    run: Callable[..., driver.Cursor]
    """``execute`` of one cursor, used again and again: a new one each time costs a fifth."""

    def __init__(self, database: str, *args: Any, **options: Any) -> None:
        self.name = database
        fork.track(self)
        self.enter()
        super().__init__(database, *args, **options)

    def enter(self) -> None:
        """Begin to use it. The hot paths spell this out."""
        self.inside = True
        if fork.pending:
            self.wait_for_fork()

    def wait_for_fork(self) -> None:
        """Stay outside of SQLite until the fork on another thread has happened."""
        self.inside = False
        fork.wait()
        self.inside = True

    def inherit(self) -> None:
        """Be of no use any more, in a forked child; its pool forgets it."""

    def close(self) -> None:
        self.enter()
        try:
            super().close()
        finally:
            self.inside = False
            fork.forget(self)
            guard.forget(self)


COUNTERS = ("hits", "misses", "writes", "refused", "evictions")


class Pool:
    """Open connections to ``path``, made by need and kept.

    :param prepare: called with each new connection, to set its pragmas.
    """

    def __init__(
        self, path: Path, timeout: float, prepare: Callable[[Connection], object], watch: bool
    ) -> None:
        self._path = path
        self._timeout = timeout
        self._prepare = prepare
        self._watch = watch
        self.idle: list[Connection] = []
        self.all: list[Connection] = []
        self._old: set[Connection] = set()

    def open(self) -> Connection:
        """Make a connection, in use. The caller puts it into its ``home`` after use."""
        self._close_old()
        connection = driver.module.connect(
            os.fspath(self._path),
            timeout=self._timeout,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=STATEMENTS,
            factory=Connection,
        )
        try:
            connection.execute(f"PRAGMA cache_size = -{PAGE_CACHE_KIB}")
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute("PRAGMA mmap_size = 0")
            self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        if self._watch:
            guard.watch(self._path, connection)
        _never_close(connection)
        connection.home = self.idle
        connection.run = connection.cursor().execute
        self.all.append(connection)
        return connection

    def discard(self, connection: Connection) -> None:
        """Close a connection that could not be used."""
        if connection in self.all:
            self.all.remove(connection)
        self._old.discard(connection)  # another thread has let it go meanwhile
        _close(connection)

    def let_go(self) -> None:
        """Begin anew, with another file of the same name.

        What is in use is closed at the next call, or when another connection is opened.
        """
        self._old.update(self.all)
        self.idle = []
        self.all = []
        self._close_old()

    def forget(self) -> None:
        """Begin anew in a forked child: the module fork has closed what can be closed."""
        self.idle = []
        self.all = []
        self._old = set()

    def close(self) -> None:
        """Close every connection; none may be in use."""
        self.idle = []
        for connection in list(self.all):
            self.discard(connection)
        self._close_old()

    def _close_old(self) -> None:
        """Close the connections to files that were replaced, but for those in use.

        SQLite leaves the new file's ``-wal`` alone: it looks whether the name is still that of
        the file it has open.
        """
        for connection in list(self._old):
            try:
                connection.home.remove(connection)
            except ValueError:
                continue  # somebody uses it
            self._old.discard(connection)
            _close(connection)


def _never_close(connection: Connection) -> None:
    """Keep the connection open when Python drops it, even when the interpreter ends.

    SQLite's last close deletes the ``-wal`` file by its name. If another process has just put a
    new file in the place of a corrupt one, that is the new file's.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))


def _close(connection: Connection) -> None:
    connection.close()
    ctypes.pythonapi.Py_DecRef(ctypes.py_object(connection))

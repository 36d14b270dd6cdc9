"""Keeps other code of this process from opening a live database file.

POSIX drops every lock that a process has on a file as soon as it closes any descriptor of that
file. A plain ``open()``, ``shutil.copyfile`` or a second SQLite library therefore takes the locks
of our connections away, and committed rows are lost later (tests/sqlite/test_guard.py). An audit
hook sees these calls before they happen and turns them into an error.

It is told a path only. So it does not know a file that is opened by ``dir_fd`` and a name, nor a
descriptor that was opened before our first connection and is closed after it.
"""

from __future__ import annotations

import os
import sys
from typing import Any
from weakref import WeakSet

from ..errors import LiveFileError
from . import driver, filesystem

#: The connections of each file, by its base name first, so that the hook needs one look-up for a
#: file that is not ours.
_live: dict[str, dict[str, WeakSet[driver.Connection]]] = {}
_installed = False


def watch(path: str | os.PathLike[str], connection: driver.Connection) -> None:
    """Guard the database at ``path`` for as long as ``connection`` is open and referenced.

    The connection must be of a subclass of the driver's, which can be referenced weakly.
    """
    global _installed
    given = os.path.abspath(path)
    for name in {given, os.path.realpath(given)}:
        # The locks are on the database and, in WAL mode, on its -shm file.
        for file in (name, f"{name}-shm"):
            files = _live.setdefault(os.path.basename(file), {})
            files.setdefault(file, WeakSet()).add(connection)
    if not _installed:
        _installed = True
        sys.addaudithook(_hook)


def forget(connection: driver.Connection) -> None:
    """Stop guarding on behalf of ``connection``; call it once it is closed."""
    for files in list(_live.values()):
        for connections in list(files.values()):
            connections.discard(connection)


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if event == "open":
        path = args[0]
    elif event == "sqlite3.connect" and driver.name != "sqlite3":
        path = _database(args[0])
    else:
        return
    if type(path) is not str:
        if not isinstance(path, (bytes, os.PathLike)):
            return  # a descriptor
        path = os.fsdecode(path)
    base = path[path.rfind("/") + 1 :] if os.sep == "/" else os.path.basename(path)
    if base in _live:
        _refuse(event, path, base)


def _refuse(event: str, path: str, base: str) -> None:
    for file, connections in list(_live[base].items()):
        if not connections:
            continue
        try:
            same = os.path.samefile(path, file)
        except OSError:
            continue
        if same:
            how = "with another SQLite library" if event == "sqlite3.connect" else "with open()"
            raise LiveFileError(
                f"{path} is a database that this process has open; opening it {how} would drop "
                "SQLite's locks and lose commits. Use flask_litestack.sqlite.connect(path) to "
                "read or write it, VACUUM INTO or `flask litestack backup` to copy it. "
                "(LITESTACK_GUARD = False switches this check off.)"
            )


def _database(name: Any) -> Any:
    if isinstance(name, bytes):
        name = os.fsdecode(name)
    if isinstance(name, str) and name.startswith("file:"):
        return filesystem.path_of(name)
    return name


def _after_fork_in_child() -> None:
    _live.clear()  # the child has none of the parent's locks, so it can drop none


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)

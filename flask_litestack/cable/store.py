"""The log of messages between processes, and who is present, in ``cable.sqlite3``.

SQLite has one writer at a time and commits are seen in order, so ids given by the file are
without gaps: who has seen id 7 has seen everything before it. Nothing here is worth a sync to
disk; after a crash of the whole machine the log starts anew with ids higher than any before.
"""

from __future__ import annotations

import json
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

from ..errors import DiskFullError, NewerStoreError, StoreError
from ..process.liveness import is_alive
from ..process.wakeup import Mailbox, wake
from ..sqlite import connect, driver
from ..sqlite.connection import Connection
from ..sqlite.file import opening
from ..sqlite.schema import Schema
from ..sqlite.trouble import is_damaged

log = logging.getLogger(__name__)

FILE = "cable.sqlite3"

#: The kind of the mailboxes and of the lives in ``run/``.
RUN_KIND = "cable"

#: Messages, and bytes, read from the log in one go.
BATCH = 500
BATCH_BYTES = 4 * 1024 * 1024

#: The old messages are looked through after this many new ones, or this many seconds.
TRIM_EVERY = 200
TRIM_SECONDS = 10.0

#: Bytes of a message besides its channel and its data.
OVERHEAD = 64

#: The most bytes of a message that go with the wake-up, and need not be read from the file.
MAX_NOTE = 8000

#: Seconds to wait for another process's write, and between two tries.
BUSY_TIMEOUT = 5.0
BUSY_SLEEP = (0.0001, 0.0005)

#: Seconds between two looks whether the path still leads to the file that is open.
LOOK = 1.0

#: Entries of the log that are looked through at most for a client that comes back.
MAX_SCAN = 50_000

SCHEMA = Schema(
    part="cable",
    upgrades=[
        [
            # last_byte counts all bytes ever logged, so that the oldest to go can be found. No
            # index by channel: it would double the cost of each message, to save clients that
            # come back a look at the few messages since they left.
            "CREATE TABLE litestack_cable_messages (id INTEGER PRIMARY KEY, "
            "kind INTEGER NOT NULL, channel TEXT NOT NULL, data TEXT NOT NULL, at REAL NOT NULL, "
            "last_byte INTEGER NOT NULL)",
            "CREATE TABLE litestack_cable_members (channel TEXT NOT NULL, user TEXT NOT NULL, "
            "process TEXT NOT NULL, connections INTEGER NOT NULL, "
            "PRIMARY KEY (channel, user, process)) WITHOUT ROWID",
            "CREATE TABLE litestack_cable_hubs (process TEXT PRIMARY KEY, pid INTEGER NOT NULL, "
            "clients INTEGER NOT NULL, channels INTEGER NOT NULL) WITHOUT ROWID",
            "CREATE TABLE litestack_cable_boot (boot TEXT NOT NULL)",
        ]
    ],
)


class RowKind(IntEnum):
    """What an entry of the log is."""

    MESSAGE = 0
    PRESENCE = 1
    DISCONNECT = 2
    START = 3
    """The first entry of a new log; its id is the highest that nobody can have missed."""
    RENDER = 4
    """A message with HTML for the page. Of a kind of its own, so that what clients have a channel
    broadcast for them can never pass for it."""


_TO_REPLAY = (int(RowKind.MESSAGE), int(RowKind.RENDER))


class Row(NamedTuple):
    """One entry of the log; ``data`` is JSON."""

    id: int
    kind: int
    channel: str
    data: str


@dataclass(frozen=True)
class Presence:
    """Who is on a channel."""

    count: int
    """Users, each once, and connections of nobody in particular."""
    users: tuple[str, ...]
    """The keys of the users, sorted."""


@dataclass(frozen=True)
class HubStatus:
    """One process with clients, some seconds ago."""

    pid: int
    clients: int
    channels: int


@dataclass(frozen=True)
class Replay:
    """What a client that comes back gets; ``missed`` if some of it is no longer there."""

    rows: Sequence[Row]
    last_id: int
    missed: bool


class Store:
    """One app's messages, for all processes.

    :param data_path: the data folder.
    :param retention: seconds that a message is kept.
    :param size: bytes of messages that are kept.
    :param clock: the time of the messages, in seconds since 1970.
    """

    def __init__(
        self,
        data_path: Path,
        *,
        retention: float,
        size: int,
        guard: bool = True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.run_path = data_path / "run"
        self._path = data_path / FILE
        self._retention = retention
        self._size = size
        self._guard = guard
        self._clock = clock
        self._listener: Callable[[Sequence[Row]], None] | None = None
        self._mailbox: Mailbox | None = None
        self._appended = 0
        self._trimmed_at = clock()
        self._slots = (self._writer, self._reader, self._follower) = (_Slot(), _Slot(), _Slot())

    def listen(
        self, listener: Callable[[Sequence[Row]], None] | None, mailbox: Mailbox | None
    ) -> None:
        """Have ``listener`` told, in order, what this process appends, without a wake-up."""
        self._listener = listener
        self._mailbox = mailbox

    def upgrade(self) -> None:
        """Bring the tables, if they are there, to the version of this release.

        :raises NewerStoreError: if a release that this one cannot follow has upgraded them.
        """
        if self._path.exists():
            self._connect().close()

    # -- messages -----------------------------------------------------------------------------

    def append(self, kind: RowKind, channel: str, data: str) -> int:
        """Add an entry, tell the hubs of all processes, and return its id."""
        try:
            row = self._append(kind, channel, data)
        except driver.DatabaseError as error:
            if not is_damaged(error):
                raise
            row = self._append(kind, channel, data)  # to the file that has taken its place
        self._tell(row)
        return row.id

    def last_id(self) -> int:
        """Return the id of the newest entry; it is never trimmed."""
        with self._reading() as connection:
            return self._bounds(connection)[1]

    def after(self, position: int) -> Sequence[Row]:
        """Return the next entries after ``position``, some hundreds at most.

        All of them come as one value: fetching row by row would give up the GIL at each, which
        costs 5 ms a row beside a thread that computes.
        """
        # With a connection of its own: the hub waits for nobody's replay.
        with self._using(self._follower) as connection:
            rows = self._batch(connection, position)
            if not rows:
                first, last = self._bounds(connection)
                if last > position:  # what lay between is trimmed
                    rows = self._batch(connection, max(position, first - 1))
        return rows

    def replay(self, channel: str, since: int, *, limit: int, size: int) -> Replay:
        """Find a channel's messages after ``since``.

        More than ``limit`` messages, or ``size`` bytes, or 50,000 of all channels together count
        as too much, like messages that are no longer there.
        """
        with self._reading() as connection:
            # The log moves between these statements. The end is looked up first, for what comes
            # behind it is not ours to give; the beginning last, for what was trimmed meanwhile
            # must not pass for complete.
            _, last = self._bounds(connection)
            rows = [
                Row(*row)
                for row in connection.execute(
                    "SELECT id, kind, channel, data FROM litestack_cable_messages "
                    "WHERE id > ? AND id <= ? AND channel = ? AND kind IN (?, ?) "
                    "ORDER BY id LIMIT ?",
                    (max(since, last - MAX_SCAN), last, channel, *_TO_REPLAY, limit + 1),
                )
            ]
            first, _ = self._bounds(connection)
        missed = (
            since < first - 1
            or since > last
            or last - since > MAX_SCAN
            or len(rows) > limit
            or sum(_size(row.channel, row.data) for row in rows) > size
        )
        return Replay((), last, True) if missed else Replay(rows, last, False)

    # -- presence -----------------------------------------------------------------------------

    def change_presence(
        self,
        process: str,
        changes: Mapping[str, Mapping[str, int]],
        describe: Callable[[str, Presence], str | None],
    ) -> None:
        """Note how many connections users have in a process, and log who is now on each channel.

        :param changes: channel -> user ("" for nobody in particular) -> connections.
        :param describe: makes the JSON that the channel's subscribers get; None for nothing.
        """
        with self._transaction() as (connection, rows):
            for channel, users in changes.items():
                gone = [(channel, user, process) for user, n in users.items() if n == 0]
                here = [(channel, user, process, n) for user, n in users.items() if n > 0]
                connection.executemany(
                    "DELETE FROM litestack_cable_members "
                    "WHERE channel = ? AND user = ? AND process = ?",
                    gone,
                )
                connection.executemany(
                    "INSERT OR REPLACE INTO litestack_cable_members "
                    "(channel, user, process, connections) VALUES (?, ?, ?, ?)",
                    here,
                )
            rows.extend(self._announce(connection, changes, describe))

    def note_hub(self, process: str, clients: int, channels: int) -> None:
        """Note how busy this process is, for :meth:`hubs`."""
        with self._writing() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO litestack_cable_hubs (process, pid, clients, channels) "
                "VALUES (?, ?, ?, ?)",
                (process, os.getpid(), clients, channels),
            )

    def hubs(self) -> list[HubStatus]:
        """Return the living processes that serve clients."""
        with self._reading() as connection:
            found = connection.execute(
                "SELECT process, pid, clients, channels FROM litestack_cable_hubs ORDER BY pid"
            ).fetchall()
        return [HubStatus(*rest) for process, *rest in found if is_alive(self.run_path, process)]

    def messages(self) -> int:
        """Return how many messages are kept; there are no gaps."""
        with self._reading() as connection:
            first, last = self._bounds(connection)
        return last - first + 1

    def forget_processes(
        self, processes: Iterable[str], describe: Callable[[str, Presence], str | None]
    ) -> None:
        """Remove what processes that are no more have left."""
        with self._transaction() as (connection, rows):
            channels: dict[str, None] = {}
            for process in processes:
                found = connection.execute(
                    "DELETE FROM litestack_cable_members WHERE process = ? RETURNING channel",
                    (process,),
                )
                channels.update(dict.fromkeys(channel for (channel,) in found))
                connection.execute("DELETE FROM litestack_cable_hubs WHERE process = ?", (process,))
            rows.extend(self._announce(connection, channels, describe))

    def processes(self) -> list[str]:
        """Return the processes that have left a trace, dead ones included."""
        with self._reading() as connection:
            found = connection.execute(
                "SELECT process FROM litestack_cable_hubs "
                "UNION SELECT process FROM litestack_cable_members"
            )
            return [process for (process,) in found]

    def present(self, channel: str) -> Presence:
        """Return who is on a channel, without the members of dead processes."""
        with self._reading() as connection:
            return self._present(connection, channel)

    # -- inside -------------------------------------------------------------------------------

    def _append(self, kind: RowKind, channel: str, data: str) -> Row:
        with self._writing() as connection:
            row = self._insert(connection, kind, channel, data)
            if self._listener is not None:
                self._listener([row])
        return row

    def _batch(self, connection: Connection, position: int) -> list[Row]:
        # Not connection.execute(): readers of a WAL wait for nobody, so its care is not needed.
        cursor = driver.Cursor(connection)
        (found,) = cursor.execute(
            "SELECT json_group_array(json_array(id, kind, channel, data)) "
            "FROM litestack_cable_messages WHERE id > ?1 AND id <= ?1 + ?2 AND last_byte <= ?3 + "
            "(SELECT last_byte FROM litestack_cable_messages WHERE id > ?1 ORDER BY id LIMIT 1)",
            (position, BATCH, BATCH_BYTES),
        ).fetchone()
        return [Row(*row) for row in json.loads(found)]

    def _insert(self, connection: Connection, kind: int, channel: str, data: str) -> Row:
        now = self._clock()
        # int(): the driver takes four times as long for a subclass.
        kind = int(kind)
        parameters = (kind, channel, data, now, _size(channel, data))
        # One INSERT, under this process's mutex, needs no turn in the queue of writers: that
        # halves its time. Other processes are done within microseconds.
        cursor = driver.Cursor(connection)
        deadline = time.monotonic() + BUSY_TIMEOUT
        while True:
            try:
                cursor.execute(
                    "INSERT INTO litestack_cable_messages (id, kind, channel, data, at, last_byte)"
                    " SELECT id + 1, ?, ?, ?, ?, last_byte + ? FROM litestack_cable_messages "
                    "ORDER BY id DESC LIMIT 1",
                    parameters,
                )
                break
            except driver.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(random.uniform(*BUSY_SLEEP))
        assert cursor.lastrowid is not None
        self._appended += 1
        if self._appended % TRIM_EVERY == 0 or now - self._trimmed_at > TRIM_SECONDS:
            self._trimmed_at = now
            self._trim(connection)
        return Row(cursor.lastrowid, kind, channel, data)

    def _trim(self, connection: Connection) -> None:
        """Delete from the old end, never from the middle whatever the clock did."""
        connection.execute(
            "DELETE FROM litestack_cable_messages WHERE id <= (SELECT max(id) FROM "
            "(SELECT id, at, last_byte FROM litestack_cable_messages ORDER BY id LIMIT ?1) "
            "WHERE at < ?2 OR last_byte < "
            "(SELECT last_byte FROM litestack_cable_messages ORDER BY id DESC LIMIT 1) - ?3) "
            "AND id < (SELECT max(id) FROM litestack_cable_messages)",
            (4 * TRIM_EVERY, self._clock() - self._retention, self._size),
        )

    def _bounds(self, connection: Connection) -> tuple[int, int]:
        first, last = connection.execute(
            "SELECT (SELECT min(id) FROM litestack_cable_messages), "
            "(SELECT max(id) FROM litestack_cable_messages)"
        ).fetchone()
        return first, last

    def _present(self, connection: Connection, channel: str) -> Presence:
        users: set[str] = set()
        anonymous = 0
        alive: dict[str, bool] = {}
        for user, process, connections in connection.execute(
            "SELECT user, process, connections FROM litestack_cable_members WHERE channel = ?",
            (channel,),
        ):
            if process not in alive:
                alive[process] = is_alive(self.run_path, process)
            if not alive[process]:
                continue
            if user:
                users.add(user)
            else:
                anonymous += connections
        return Presence(len(users) + anonymous, tuple(sorted(users)))

    def _announce(
        self,
        connection: Connection,
        channels: Iterable[str],
        describe: Callable[[str, Presence], str | None],
    ) -> Iterator[Row]:
        for channel in channels:
            data = describe(channel, self._present(connection, channel))
            if data is not None:
                yield self._insert(connection, RowKind.PRESENCE, channel, data)

    def _tell(self, row: Row | None = None) -> None:
        note = b"\0"
        if row is not None and len(row.data) < MAX_NOTE:
            packed = json.dumps(row).encode()
            note = packed if len(packed) < MAX_NOTE else note
        wake(self.run_path, RUN_KIND, besides=self._mailbox, note=note)

    # -- connections --------------------------------------------------------------------------

    @contextmanager
    def _transaction(self) -> Iterator[tuple[Connection, list[Row]]]:
        rows: list[Row] = []
        with self._writing() as connection:
            connection.begin_immediate()
            try:
                yield connection, rows
                connection.commit()
            except BaseException:
                connection.rollback()
                raise
            if rows and self._listener is not None:
                self._listener(rows)
        if rows:
            self._tell()

    def _writing(self) -> AbstractContextManager[Connection]:
        return self._using(self._writer)

    def _reading(self) -> AbstractContextManager[Connection]:
        return self._using(self._reader)

    @contextmanager
    def _using(self, slot: _Slot) -> Iterator[Connection]:
        with slot.mutex:
            now = time.monotonic()
            if slot.connection is not None and now - slot.looked_at > LOOK:
                slot.looked_at = now
                if _inode(self._path) != slot.inode:
                    slot.close()  # another process has put a new file in its place
            if slot.connection is None:
                slot.connection = self._open()
                slot.inode = _inode(self._path)
                for other in self._slots:
                    other.looked_at = 0.0
                slot.looked_at = now
            try:
                yield slot.connection
            except driver.DatabaseError as error:
                if is_damaged(error):
                    with opening(self._path):
                        if _inode(self._path) == slot.inode:
                            self._put_aside(error)
                    slot.close()
                raise

    def _open(self) -> Connection:
        connection = self._connect()
        try:
            self._start_after_boot(connection)
        except BaseException:
            connection.close()
            raise
        # Each statement commits by itself; longer transactions begin explicitly.
        connection.isolation_level = None
        return connection

    def _connect(self) -> Connection:
        try:
            return self._connect_once()
        except (NewerStoreError, DiskFullError):
            raise
        except StoreError as error:
            with opening(self._path):
                self._put_aside(error)
            return self._connect_once()

    def _put_aside(self, error: Exception) -> None:
        """Make room for a new file. Messages of the last hour are not worth a site that is down."""
        log.error("%s is damaged and put aside for a new one: %s", FILE, error)
        os.replace(self._path, self._path.with_suffix(f".damaged-{int(self._clock())}"))
        for suffix in ("-wal", "-shm"):
            Path(f"{self._path}{suffix}").unlink(missing_ok=True)

    def _connect_once(self) -> Connection:
        connection = connect(self._path, synchronous="OFF", guard=self._guard)
        try:
            connection.execute("PRAGMA cache_size = -1024")
            connection.execute("PRAGMA wal_autocheckpoint = 1000")
            SCHEMA.ensure(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _start_after_boot(self, connection: Connection) -> None:
        """Begin a new log after the machine was started: the end of the old one may be lost.

        The first id is the time in microseconds: higher than what any client has, and with six
        digits less than what JavaScript counts exactly.
        """
        boot = _boot()
        query = "SELECT boot FROM litestack_cable_boot"
        if connection.execute(query).fetchone() == (boot,):
            return
        connection.begin_immediate()
        try:
            if connection.execute(query).fetchone() != (boot,):
                highest = connection.execute(
                    "SELECT coalesce(max(id), 0) FROM litestack_cable_messages"
                ).fetchone()[0]
                now = self._clock()
                first = max(int(now * 1e6), highest + 1_000_000)
                for table in ("messages", "members", "hubs", "boot"):
                    connection.execute(f"DELETE FROM litestack_cable_{table}")
                connection.execute(
                    "INSERT INTO litestack_cable_messages (id, kind, channel, data, at, last_byte)"
                    " VALUES (?, ?, '', 'null', ?, 0)",
                    (first, RowKind.START, now),
                )
                connection.execute("INSERT INTO litestack_cable_boot (boot) VALUES (?)", (boot,))
            connection.commit()
        except BaseException:
            connection.rollback()
            raise

    def close(self) -> None:
        """Close the connections; the next use opens new ones."""
        for slot in self._slots:
            with slot.mutex:
                slot.close()

    def after_fork(self) -> None:
        """Leave the parent's connections alone, in a child; our own are opened on first use."""
        self._listener = self._mailbox = None
        # sqlite.connection keeps the inherited ones referenced for ever.
        self._slots = (self._writer, self._reader, self._follower) = (_Slot(), _Slot(), _Slot())


class _Slot:
    """A connection that is opened when it is needed, for one thread at a time."""

    def __init__(self) -> None:
        self.mutex = threading.Lock()
        self.connection: Connection | None = None
        #: Which file it is, and when we last looked whether the path still leads there.
        self.inode: int | None = None
        self.looked_at = 0.0

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None


def _inode(path: Path) -> int | None:
    try:
        return os.stat(path).st_ino
    except FileNotFoundError:
        return None


def _size(channel: str, data: str) -> int:
    """Tell how many bytes a message takes, in the file or on its way to a client."""
    return len(data.encode()) + len(channel.encode()) + OVERHEAD


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""  # not Linux: taken for one boot for ever

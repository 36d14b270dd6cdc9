"""Versioned tables of our own inside a database file, upgraded by whoever comes first.

Within a major release a change is additive, so that the release before it still runs on the
upgraded file after a roll-back of the app.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import NewerStoreError
from .connection import Connection

TABLE = "litestack_schema"


@dataclass(frozen=True)
class Schema:
    """The tables of one part.

    :param part: the part's name, e.g. "jobs".
    :param upgrades: for each version from 1 on, the statements that lead to it.
    :param readable_from: the oldest version whose code still works on the newest tables.
    """

    part: str
    upgrades: Sequence[Sequence[str]]
    readable_from: int = 1

    @property
    def version(self) -> int:
        """The newest version that this release knows."""
        return len(self.upgrades)

    def is_there(self, connection: Connection) -> bool:
        """Tell whether the tables exist, in any version that this release can use."""
        return self._found(connection) > 0

    def ensure(self, connection: Connection, *, joins: bool = False) -> None:
        """Create or upgrade the tables unless they are there.

        Inside a transaction that has the write lock already it becomes part of that, so the tables
        are there for others when the caller commits.

        :param joins: begin that transaction, and leave the commit to the caller in any case.
        :raises NewerStoreError: if a release that this one cannot follow has upgraded them.
        """
        if self._found(connection) >= self.version:
            return
        is_joined = joins or connection.writing
        connection.begin_immediate()
        if is_joined:
            self._upgrade(connection)
            return
        try:
            self._upgrade(connection)
            connection.commit()
        except BaseException:
            connection.rollback()
            raise

    def _upgrade(self, connection: Connection) -> None:
        # Another process may have come first, so everything is looked at again.
        connection.execute(
            f"CREATE TABLE IF NOT EXISTS {TABLE} (part TEXT PRIMARY KEY, "
            "version INTEGER NOT NULL, readable_from INTEGER NOT NULL) WITHOUT ROWID"
        )
        found = self._found(connection)
        for statements in self.upgrades[found:]:
            for statement in statements:
                connection.execute(statement)
        if found < self.version:
            connection.execute(
                f"INSERT INTO {TABLE} (part, version, readable_from) VALUES (?, ?, ?) "
                "ON CONFLICT (part) DO UPDATE SET version = excluded.version, "
                "readable_from = excluded.readable_from",
                (self.part, self.version, self.readable_from),
            )

    def _found(self, connection: Connection) -> int:
        exists = connection.execute(
            "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = ?", (TABLE,)
        ).fetchone()
        if not exists:
            return 0
        row = connection.execute(
            f"SELECT version, readable_from FROM {TABLE} WHERE part = ?", (self.part,)
        ).fetchone()
        if row is None:
            return 0
        version, readable_from = row
        if readable_from > self.version:
            raise NewerStoreError(
                f"the tables of {self.part} are of version {version}, which needs a release that "
                f"knows version {readable_from}; this one knows {self.version}. Deploy the newer "
                "release again, or restore a backup from before the upgrade."
            )
        return int(version)

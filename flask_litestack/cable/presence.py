"""Counts who is on which channel in this process, and what changed since it was last told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable


class Members:
    """The members of this process's channels; "" stands for nobody in particular."""

    def __init__(self) -> None:
        self._members: dict[str, Counter[str]] = {}
        self._changed: dict[str, set[str]] = {}

    def __bool__(self) -> bool:
        return bool(self._members)

    def join(self, channel: str, user: str) -> None:
        """Note one more connection of a user."""
        self._members.setdefault(channel, Counter())[user] += 1
        self._changed.setdefault(channel, set()).add(user)

    def leave(self, channel: str, user: str) -> None:
        """Note one connection less; a channel that was not joined is ignored."""
        members = self._members.get(channel)
        if members is None or user not in members:
            return
        members[user] -= 1
        if not members[user]:
            del members[user]
        if not members:
            del self._members[channel]
        self._changed.setdefault(channel, set()).add(user)

    def change_all(self) -> None:
        """Take all members for untold."""
        for channel, members in self._members.items():
            self._changed.setdefault(channel, set()).update(members)

    @property
    def changed(self) -> bool:
        """Whether there is anything to tell."""
        return bool(self._changed)

    def take_changes(self, wanted: Callable[[str], bool]) -> dict[str, dict[str, int]]:
        """Return channel -> user -> connections of what changed since it was last taken.

        :param wanted: whether to take the changes of a channel now.
        """
        none: Counter[str] = Counter()
        return {
            channel: {
                user: self._members.get(channel, none)[user] for user in self._changed.pop(channel)
            }
            for channel in list(self._changed)
            if wanted(channel)
        }

    def put_back(self, changes: dict[str, dict[str, int]]) -> None:
        """Take these changes for untold again."""
        for channel, users in changes.items():
            self._changed.setdefault(channel, set()).update(users)

"""What a statement will do to a transaction, told from its text before it runs."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from functools import lru_cache


class Kind(enum.Enum):
    """What has to happen around a statement."""

    READ = enum.auto()  # may run outside a transaction
    WRITE = enum.auto()  # needs the write lock first
    ALONE = enum.auto()  # writes, but must not be inside a transaction: VACUUM
    BEGIN = enum.auto()  # the user's own, a snapshot
    BEGIN_WRITE = enum.auto()  # the user's own, with the write lock
    END = enum.auto()  # COMMIT, END, ROLLBACK of all
    SAVEPOINT = enum.auto()
    RELEASE = enum.auto()
    ROLLBACK_TO = enum.auto()


@dataclass(frozen=True)
class Statement:
    """A classified statement."""

    kind: Kind
    name: str = ""
    """Of the savepoint, or of the setting that a read changes for the connection, in lower case."""


#: What the compiler of a tuned engine writes for SELECT ... FOR UPDATE, which SQLite lacks.
FOR_UPDATE = "/* FOR UPDATE */"

_TOKEN = re.compile(
    r"""
    (?P<skip>\s+|--[^\n]*|/\*.*?(?:\*/|\Z))
    |(?P<quoted>'(?:[^']|'')*'|"(?:[^"]|"")*"|`(?:[^`]|``)*`|\[[^\]]*\])
    |(?P<word>\w+)
    |(?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)
_READS = frozenset({"SELECT", "VALUES", "EXPLAIN", "ATTACH", "DETACH", ""})
_VERBS = frozenset({"SELECT", "VALUES", "INSERT", "REPLACE", "UPDATE", "DELETE"})
#: These change the file inside a transaction like any other write.
_WRITING_PRAGMAS = frozenset({"user_version", "application_id", "schema_version"})
#: These take the write lock by themselves and refuse, or do nothing, inside a transaction.
_LONE_PRAGMAS = frozenset({"journal_mode", "optimize", "incremental_vacuum", "auto_vacuum"})
#: These ask something, end with the transaction, or are set back by SQLAlchemy.
_PASSING_PRAGMAS = frozenset(
    {
        *("table_info", "table_xinfo", "table_list", "index_list", "index_info", "index_xinfo"),
        *("foreign_key_list", "foreign_key_check", "integrity_check", "quick_check"),
        *("wal_checkpoint", "defer_foreign_keys", "read_uncommitted"),
    }
)

_READ = Statement(Kind.READ)
_WRITE = Statement(Kind.WRITE)


@lru_cache(maxsize=2048)
def classify(sql: str) -> Statement:
    """Say what ``sql`` needs. What is not known to read counts as a write."""
    words = _Words(sql)
    first = next(words, "")
    if first in _READS:
        if FOR_UPDATE in sql:
            return _WRITE
        return Statement(Kind.READ, "attach") if first in ("ATTACH", "DETACH") else _READ
    if first == "WITH":
        verb = next((word for word in words if word in _VERBS), "")
        reads = verb in _READS and FOR_UPDATE not in sql
        return _READ if reads else _WRITE
    if first == "PRAGMA":
        return _pragma(list(words))
    if first in ("BEGIN", "COMMIT", "END", "ROLLBACK", "SAVEPOINT", "RELEASE"):
        return _control(first, list(words))
    if first == "VACUUM":
        return _READ if "INTO" in words else Statement(Kind.ALONE)
    return _WRITE


class _Words:
    """The words of a statement outside parentheses and comments, then "=" and "(" as they come."""

    def __init__(self, sql: str) -> None:
        self._tokens = _TOKEN.finditer(sql)
        self._depth = 0

    def __iter__(self) -> _Words:
        return self

    def __next__(self) -> str:
        for match in self._tokens:
            text = match.group()
            if match.lastgroup == "skip":
                continue
            if text == ")":
                self._depth -= 1
                continue
            if text == "(":
                self._depth += 1
                if self._depth == 1:
                    return text
                continue
            if self._depth:
                continue
            if match.lastgroup == "word":
                return text.upper()
            if match.lastgroup == "quoted":
                return f"'{text[1:-1]}"
            if text == "=":
                return text
        raise StopIteration


def _pragma(words: list[str]) -> Statement:
    assigns = "=" in words or "(" in words
    name = _pragma_name(words)
    if name in _LONE_PRAGMAS and (assigns or name in ("optimize", "incremental_vacuum")):
        return Statement(Kind.ALONE)
    if name in _WRITING_PRAGMAS and assigns:
        return _WRITE
    if assigns and name not in _PASSING_PRAGMAS:
        return Statement(Kind.READ, name)
    return _READ


def _pragma_name(words: list[str]) -> str:
    """Return the pragma's name without its schema ("main.user_version")."""
    before = []
    for word in words:
        if word in ("=", "("):
            break
        before.append(word.lower())
    return before[-1] if before else ""


def _control(first: str, words: list[str]) -> Statement:
    if first == "BEGIN":
        writes = bool(words) and words[0] in ("IMMEDIATE", "EXCLUSIVE")
        return Statement(Kind.BEGIN_WRITE if writes else Kind.BEGIN)
    if first == "SAVEPOINT":
        return Statement(Kind.SAVEPOINT, _name(words))
    if first == "RELEASE":
        return Statement(Kind.RELEASE, _name(words))
    if first == "ROLLBACK" and "TO" in words:
        return Statement(Kind.ROLLBACK_TO, _name(words))
    return Statement(Kind.END)


def _name(words: list[str]) -> str:
    return words[-1].lstrip("'").lower() if words else ""

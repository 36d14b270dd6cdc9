"""A small SQL console, for machines without the ``sqlite3`` shell.

``python -m flask_litestack.sqlite.console FILE [SQL]`` runs in a process of its own: no other
SQLite library has the file open there.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import LitestackError
from . import connect, driver
from .connection import Connection

BANNER = """\
SQLite {version} on {path}
Each statement commits by itself, unless you BEGIN. It ends with a semicolon.
.tables lists the tables, .schema [TABLE] shows how they were made, .quit ends."""

TABLES = "SELECT name FROM sqlite_schema WHERE type IN ('table', 'view') ORDER BY name"
SCHEMA = "SELECT sql || ';' FROM sqlite_schema WHERE sql IS NOT NULL AND ? IN ('', tbl_name)"

Rows = Callable[[Sequence[str], Iterable[Sequence[Any]]], None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the console; 1 if a statement failed and nobody was there to see it, else 0."""
    parser = argparse.ArgumentParser(prog="dbconsole")
    parser.add_argument("file", type=Path)
    parser.add_argument("sql", nargs="?")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    connection = connect(options.file)
    connection.isolation_level = None
    console = Console(connection, print_json if options.json else print_rows)
    try:
        if options.sql is not None:
            return console.run_all([options.sql])
        if not sys.stdin.isatty():
            return console.run_all(sys.stdin)
        print(BANNER.format(version=driver.version, path=options.file))
        return console.interact()
    finally:
        connection.close()


class Console:
    """Reads statements, runs them and prints their rows."""

    def __init__(self, connection: Connection, print_rows: Rows) -> None:
        self._connection = connection
        self._print_rows = print_rows

    def run_all(self, lines: Iterable[str]) -> int:
        """Run every statement up to the first that fails."""
        waiting = ""
        for line in lines:
            waiting, ok = self._take(waiting, line)
            if not ok:
                return 1
        return 0 if not waiting.strip() or self._run(waiting) else 1

    def interact(self) -> int:
        """Talk to a person until the end of the input, or .quit."""
        with suppress(ImportError):
            import readline  # noqa: F401  (its import gives input() editing and history)
        waiting = ""
        while True:
            try:
                line = input("   ...> " if waiting else "sqlite> ")
            except EOFError:
                print()
                return 0
            except KeyboardInterrupt:
                print()
                waiting = ""
                continue
            if not waiting and line.strip() in {".quit", ".exit"}:
                return 0
            waiting, _ = self._take(waiting, line + "\n")

    def _take(self, waiting: str, line: str) -> tuple[str, bool]:
        """Run what is complete with this line; the rest, and whether all went well."""
        if not waiting and line.startswith("."):
            return "", self._command(line.split())
        waiting = waiting + line if waiting or line.strip() else ""
        while end := _end_of_statement(waiting):
            statement, waiting = waiting[:end], waiting[end:].lstrip()
            if not self._run(statement):
                return "", False
        return waiting, True

    def _command(self, words: list[str]) -> bool:
        name, arguments = words[0], words[1:]
        if name == ".tables" and not arguments:
            return self._run(TABLES)
        if name == ".schema" and len(arguments) <= 1:
            return self._run(SCHEMA, ("".join(arguments),))
        print(f"Error: {name} is not known: .tables, .schema [TABLE], .quit", file=sys.stderr)
        return False

    def _run(self, sql: str, parameters: Sequence[str] = ()) -> bool:
        try:
            cursor = self._connection.execute(sql, parameters)
        except (driver.Error, LitestackError) as error:
            print(f"Error: {error}", file=sys.stderr)
            return False
        if cursor.description:
            self._print_rows([column[0] for column in cursor.description], cursor)
        return True


def print_rows(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print one line a row, as the sqlite3 shell does."""
    for row in rows:
        print("|".join("" if value is None else _text(value) for value in row))


def print_json(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print the rows as a JSON array of objects."""
    print(json.dumps([dict(zip(columns, row, strict=True)) for row in rows], default=_text))


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _end_of_statement(text: str) -> int:
    """Find the end of the first whole statement, 0 if there is none yet."""
    end = text.find(";")
    while end >= 0:
        if driver.module.complete_statement(text[: end + 1]):
            return end + 1
        end = text.find(";", end + 1)
    return 0


if __name__ == "__main__":
    sys.exit(main())

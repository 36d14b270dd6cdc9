"""Prints what a command found: the same data for people or, with --json, for programs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

from ..sqlite.health import human

#: The option of every command that prints data.
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def show(data: Mapping[str, Any] | Sequence[Mapping[str, Any]], as_json: bool) -> None:
    """Print a mapping as lines, a list of mappings as a table, or either as JSON.

    For people, a number under a key that ends in "size" is bytes, None is "-", an empty list is
    "none", and a mapping inside a mapping is a section of its own.
    """
    if as_json:
        click.echo(json.dumps(data, indent=2, default=str))
    elif isinstance(data, Mapping):
        for line in _section(data, ""):
            click.echo(line)
    else:
        for line in _table(data, ""):
            click.echo(line)


def _section(data: Mapping[str, Any], indent: str) -> Iterator[str]:
    simple = {key: value for key, value in data.items() if not _is_nested(value)}
    width = max(map(len, simple), default=0)
    for key, value in data.items():
        title = f"{indent}{_words(key)}"
        if key in simple:
            yield f"{title:<{len(indent) + width}}  {_text(key, value)}"
        elif isinstance(value, Mapping):
            yield title
            yield from _section(value, indent + "  ")
        else:
            yield title
            yield from _table(value, indent + "  ")


def _table(rows: Sequence[Mapping[str, Any]], indent: str) -> Iterator[str]:
    if not rows:
        yield f"{indent}none"
        return
    columns = list(rows[0])
    lines = [[_words(column) for column in columns]]
    lines += [[_text(column, row[column]) for column in columns] for row in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        yield f"{indent}{'  '.join(cells)}".rstrip()


def _is_nested(value: Any) -> bool:
    if isinstance(value, Mapping):
        return bool(value)
    return isinstance(value, list) and any(isinstance(item, Mapping) for item in value)


def _words(key: str) -> str:
    return key.replace("_", " ")


def _text(key: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple, dict)):
        return ", ".join(map(str, value)) or "none"
    if key.endswith("size"):
        return human(value)
    if isinstance(value, float):
        return f"{value:.1f}"
    return str(value)

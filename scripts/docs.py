"""Writes the pages of docs/ that follow from the code.

docs/configuration.md from the settings, docs/cli.md from the commands, docs/errors.md from the
errors; a test compares them. Run ``.venvs/newest/bin/python scripts/docs.py``.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import typing
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from flask_litestack import config, errors
from flask_litestack.cli import litestack

DOCS = Path(__file__).resolve().parent.parent / "docs"

CONFIGURATION = """\
# Configuration

Every setting is a key of `app.config` that begins with `LITESTACK_`, read when
`litestack.init_app(app)` is called. None has to be set. Times are in seconds, sizes in bytes.

```python
app.config["LITESTACK_BUSY_TIMEOUT"] = 10
app.config.from_prefixed_env()          # FLASK_LITESTACK_BUSY_TIMEOUT=10 in the environment
```

`LITESTACK_DATA_PATH` alone is read from the environment under its own name, too. A key that does
not exist, or a value of another type, is a `ConfigError` that names the nearest key.

"""

CLI = """\
# Commands

All are under `flask litestack`. Exit codes: 0 done, 1 a problem was found, 2 wrong usage. What
prints data takes `--json`. An error of ours is one sentence on standard error.

Run as root, in the console of a server say, a command goes on as the owner of the data folder,
so that it leaves no file behind that the app cannot write.

"""

ERRORS = """\
# Errors

All are names of `flask_litestack`. Each message says what happened, names the key or the command
in question, and says what to do.

"""


def configuration() -> str:
    """The page of all settings."""
    return CONFIGURATION + "\n".join(_settings())


def cli() -> str:
    """The page of all commands."""
    context = click.Context(litestack, info_name="flask litestack")
    return CLI + "\n".join(_commands(context, litestack))


def error_tree() -> str:
    """The page of all errors."""
    _, tree, rest = (inspect.getdoc(errors) or "").split("\n\n", 2)
    return f"{ERRORS}```\n{tree}\n```\n\n{rest}\n\n" + "\n".join(_errors())


PAGES: dict[str, Callable[[], str]] = {
    "configuration.md": configuration,
    "cli.md": cli,
    "errors.md": error_tree,
}


def _settings() -> Iterator[str]:
    types = typing.get_type_hints(config.Settings)
    meanings = _attribute_docstrings(inspect.getsource(config.Settings))
    yield "| setting | value | default | meaning |\n|---|---|---|---|"
    for field in dataclasses.fields(config.Settings):
        name = f"{config.PREFIX}{field.name.upper()}"
        default = "" if field.default is dataclasses.MISSING else f"`{field.default!r}`"
        meaning = " ".join(meanings[field.name].replace("``", "`").split())
        yield f"| `{name}` | {_type(types[field.name])} | {default} | {meaning} |"
    yield ""


def _attribute_docstrings(source: str) -> dict[str, str]:
    """The strings below the annotated attributes of a class."""
    [made] = ast.parse(source).body
    assert isinstance(made, ast.ClassDef)
    found = {}
    for attribute, below in zip(made.body, made.body[1:], strict=False):
        if isinstance(attribute, ast.AnnAssign) and isinstance(attribute.target, ast.Name):
            assert isinstance(below, ast.Expr), f"{attribute.target.id} has no docstring"
            assert isinstance(below.value, ast.Constant)
            found[attribute.target.id] = inspect.cleandoc(str(below.value.value))
    return found


def _type(kind: typing.Any) -> str:
    names = {Path: "folder", float: "number", int: "whole number", bool: "true or false"}
    names |= {str: "text", type(None): "none"}
    if typing.get_origin(kind) is typing.Literal:
        return " or ".join(f"`{choice!r}`" for choice in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        return "list of texts"
    return " or ".join(names[option] for option in typing.get_args(kind) or (kind,))


def _commands(context: click.Context, command: click.Command) -> Iterator[str]:
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from _commands(click.Context(found, context, name), found)
        return
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    yield f"## `{context.command_path}`\n"
    yield f"```\n{usage}\n```\n"
    yield f"{inspect.cleandoc(command.help or '')}\n"
    options = [option for option in command.params if isinstance(option, click.Option)]
    if options:
        yield "| option | meaning |\n|---|---|"
        for option in options:
            names = ", ".join(option.opts) + ("" if option.is_flag else f" {_metavar(option)}")
            yield f"| `{names}` | {_meaning(option)} |"
        yield ""


def _metavar(option: click.Option) -> str:
    kind = "TEXT" if isinstance(option.type, click.Choice) else option.type.name.upper()
    return option.metavar or kind.removesuffix(" RANGE")


def _meaning(option: click.Option) -> str:
    parts = [option.help or ""]
    if isinstance(option.type, click.Choice):
        parts.append(f"One of {', '.join(option.type.choices)}.")
    if option.show_default:
        default = option.default
        values = default if isinstance(default, (list, tuple)) else [default]
        parts.append(f"Default: {', '.join(map(str, values))}.")
    return " ".join(filter(None, parts))


def _errors() -> Iterator[str]:
    for name, error in vars(errors).items():
        if isinstance(error, type) and error.__module__ == errors.__name__:
            yield f"**`{name}`**: {' '.join((inspect.getdoc(error) or '').split())}\n"


if __name__ == "__main__":
    for name, page in PAGES.items():
        (DOCS / name).write_text(page())
        print(f"docs/{name}")

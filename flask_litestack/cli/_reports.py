"""What ``status`` and ``doctor`` know of each part of the stack.

A part takes part by a module with one or both of two functions, and a line in :data:`REPORTS`::

    def status(part, settings: Settings) -> Mapping[str, Any]: ...
    def findings(part, settings: Settings) -> Iterable[Finding]: ...

``part`` is ``litestack.<name>``. A status is JSON: its keys become the words that people read
(see ``_output.show``). Both run in an app context, in the process of the command, once the data
folder is there; neither creates a file that is not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from .. import backups
from ..errors import LitestackError
from ..extension import Litestack
from ..sqlite import driver
from ..sqlite.health import Finding, Severity

#: litestack.<name> -> the module of its report.
REPORTS = {
    "db": "flask_litestack.cli._database",
    "cable": "flask_litestack.cli.cable",
    "cache": "flask_litestack.cli.cache",
    "jobs": "flask_litestack.cli.jobs",
}

_ERRORS = (LitestackError, SQLAlchemyError, driver.Error)


def status(litestack: Litestack) -> dict[str, Any]:
    """Collect the status of every part, by its name; a part that fails has a ``problem``."""
    found: dict[str, Any] = {}
    for name, report in _reports("status"):
        try:
            found[name] = report(getattr(litestack, name), litestack.settings)
        except _ERRORS as error:
            found[name] = {"problem": str(getattr(error, "orig", error))}
    return found


def findings(litestack: Litestack) -> Iterator[Finding]:
    """Collect the findings of every part, and of the last backup."""
    for name, report in _reports("findings"):
        yield from _findings_of(name, report, getattr(litestack, name), litestack.settings)
    if not litestack.db.why_no_file():
        yield from _findings_of("backup", backups.check, litestack.settings, litestack.db)


def _findings_of(
    name: str, look: Callable[..., Iterable[Finding]], *arguments: Any
) -> Iterator[Finding]:
    try:
        yield from look(*arguments)
    except _ERRORS as error:
        yield Finding(name, Severity.ERROR, str(getattr(error, "orig", error)))


def _reports(function: str) -> Iterator[tuple[str, Any]]:
    for name, module in REPORTS.items():
        report = getattr(import_module(module), function, None)
        if report is not None:
            yield name, report

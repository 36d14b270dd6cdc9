"""``flask litestack doctor``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

import click

from .. import production
from ..extension import Litestack
from ..perapp import current_flask
from ..sqlite import health
from ..sqlite.health import Finding, Severity
from . import _reports
from ._app import with_litestack
from ._output import json_option, show

_COLOURS = {Severity.OK: "green", Severity.WARNING: "yellow", Severity.ERROR: "red"}


@click.command
@json_option
@with_litestack
@click.pass_context
def command(context: click.Context, litestack: Litestack, as_json: bool) -> None:
    """Look for what is, or will go, wrong, and say how to fix it.

    Ends with exit code 1 if there is an error; warnings do not count.
    """
    found = list(_findings(litestack))
    if as_json:
        show([asdict(finding) for finding in found], as_json)
    else:
        for finding in found:
            _print(finding)
    context.exit(1 if any(finding.severity is Severity.ERROR for finding in found) else 0)


def _findings(litestack: Litestack) -> Iterator[Finding]:
    path = litestack.settings.data_path
    yield health.check_sqlite()
    folder = list(health.check_folder(litestack.db.files(path)))
    yield from folder
    if path.exists() and all(finding.severity is not Severity.ERROR for finding in folder):
        yield from _reports.findings(litestack)
    yield from production.findings(current_flask(), litestack)


def _print(finding: Finding) -> None:
    label = click.style(f"{finding.severity:<7}", fg=_COLOURS[finding.severity])
    click.echo(f"{label}  {finding.check}: {finding.what}")
    if finding.fix:
        click.echo(f"         Fix: {finding.fix}")

"""Processes that use one database: started fast, in step, and heard when they fail."""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection as Pipe
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from flask import Flask

from flask_litestack import Litestack
from tests.conftest import Model

#: The server of forks has imported everything, has no threads and no database.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.processes.crowd"])

#: Seconds after which a process is taken for hung.
PATIENCE = 60.0


def make_app(data: Path, **settings: Any) -> tuple[Flask, Litestack]:
    """Make an app with the tests' models on a data folder."""
    litestack = Litestack(metadata=Model.metadata)
    app = Flask("crowd")
    app.config["LITESTACK_DATA_PATH"] = data
    app.config.from_mapping({f"LITESTACK_{key.upper()}": value for key, value in settings.items()})
    litestack.init_app(app)
    return app, litestack


class Member:
    """A process that runs ``function(pipe, *arguments)``; use :func:`member` to make one."""

    def __init__(self, process: BaseProcess, pipe: Pipe) -> None:
        self.process = process
        self.pid: int = process.pid or 0
        self._pipe = pipe

    def say(self, value: object) -> None:
        """Send something to the process."""
        self._pipe.send(value)

    def hear(self, timeout: float = PATIENCE) -> Any:
        """Return what the process sent next; raise what it died of."""
        assert self._pipe.poll(timeout), f"process {self.pid} said nothing for {timeout} s"
        kind, value = self._pipe.recv()
        assert kind == "said", f"process {self.pid} failed:\n{value}"
        return value

    def heard(self) -> list[Any]:
        """Return all that the process said until it ended, killed or not."""
        said = []
        while True:
            try:
                said.append(self.hear())
            except EOFError:
                return said


class Voice:
    """The other end, in the process."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe

    def say(self, value: object) -> None:
        """Send something to the test."""
        self._pipe.send(("said", value))

    def hear(self) -> Any:
        """Wait for something that the test sends."""
        return self._pipe.recv()


@contextmanager
def members(count: int, function: Callable[..., Any], *arguments: Any) -> Iterator[list[Member]]:
    """Start processes that run ``function(voice, *arguments)``, and kill what is left of them."""
    started: list[Member] = []
    try:
        for _ in range(count):
            ours, theirs = CONTEXT.Pipe()
            process = CONTEXT.Process(target=_run, args=(theirs, function, arguments), daemon=True)
            process.start()
            theirs.close()
            started.append(Member(process, ours))
        yield started
    finally:
        for member in started:
            member.process.kill()
            member.process.join()


def together(count: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Run ``function(voice, *arguments)`` in several processes; return what each said last.

    The function says something first, when it is ready, and goes on when it hears something.
    """
    with members(count, function, *arguments) as crowd:
        for member in crowd:
            member.hear()
        for member in crowd:
            member.say("go")
        return [member.heard()[-1] for member in crowd]


def _run(pipe: Pipe, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        function(Voice(pipe), *arguments)
    except BaseException:
        pipe.send(("failed", traceback.format_exc()))
        os._exit(1)

"""Starts real worker processes for a test, and kills them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from flask import Flask
from sqlalchemy import select

from ..servers import BIN, PATIENCE, environment
from .jobs_app import Row, create_app, litestack


def wait_until(condition: Callable[[], Any], what: str, seconds: float = PATIENCE) -> None:
    """Wait until something is true, or fail."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(0.005)


class Box:
    """A data folder, an app in this process that looks at it, and worker processes."""

    def __init__(self, folder: Path, variables: dict[str, str]) -> None:
        self.folder = folder
        self.variables = {"LITESTACK_DATA_PATH": str(folder), **variables}
        self.app: Flask = _create_app(self.variables)
        self.logs: list[Path] = []
        self.commands: list[subprocess.Popen[bytes]] = []

    def start(
        self, *options: str, wait: int | None = None, **variables: str
    ) -> subprocess.Popen[bytes]:
        """Start ``flask litestack worker``; return when its processes are there."""
        before = len(self.worker_pids())
        log = self.folder.parent / f"worker-{len(self.logs)}.log"
        self.logs.append(log)
        with log.open("wb") as output:
            process = subprocess.Popen(
                [
                    *(str(BIN / "flask"), "--app", "tests.processes.jobs_app:create_app"),
                    *("litestack", "worker", *options),
                ],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment(**{**self.variables, **variables}),
                start_new_session=True,
            )
        self.commands.append(process)
        count = wait if wait is not None else 1
        wait_until(lambda: len(self.worker_pids()) >= before + count, "the workers are there")
        return process

    def worker_pids(self) -> list[int]:
        return [worker.pid for worker in litestack.jobs.workers()]

    def kill_worker(self) -> None:
        """SIGKILL one worker process."""
        pid = self.worker_pids()[0]
        os.kill(pid, signal.SIGKILL)

    def wait_for(self, name: str) -> None:
        """Wait until a job has made a file."""
        wait_until(lambda: (self.folder / name).exists(), name)

    def wait_until_done(self, seconds: float = 60) -> None:
        """Wait until no job is to be done any more."""

        def done() -> bool:
            counts = litestack.jobs.counts()
            return counts["queued"] + counts["running"] + counts["scheduled"] == 0

        try:
            wait_until(done, "all jobs have ended", seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}: {litestack.jobs.list(limit=5)}\n{self.output()}") from (
                None
            )

    def rows(self) -> list[int]:
        """The numbers of the rows that jobs have written, in order."""
        session = litestack.db.session
        session.rollback()
        return list(session.scalars(select(Row.n).order_by(Row.n)))

    def output(self) -> str:
        """What the workers have printed."""
        return "\n".join(log.read_text(errors="replace") for log in self.logs)

    def stop(self, process: subprocess.Popen[bytes]) -> int:
        """SIGTERM; return the exit code."""
        process.send_signal(signal.SIGTERM)
        return process.wait(PATIENCE)


def _create_app(variables: dict[str, str]) -> Flask:
    os.environ.update(variables)
    try:
        return create_app()
    finally:
        for name in variables:
            del os.environ[name]


@contextmanager
def box_at(folder: Path, **variables: str) -> Iterator[Box]:
    """A box whose processes have these environment variables, and the end of them."""
    box = Box(folder, variables)
    with box.app.app_context():
        litestack.db.create_all()
        try:
            yield box
        finally:
            for process in box.commands:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            litestack.db.close_session()
            litestack.db.engine.dispose()
            sys.stdout.write(box.output())

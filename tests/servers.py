"""Starts a real server for a test, and ends it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

BIN = Path(sys.executable).parent
TREE = Path(__file__).parent.parent

#: Seconds until a server must answer, or have ended, on a busy machine.
PATIENCE = 30


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def environment(**variables: str) -> dict[str, str]:
    """The environment of a process that runs a test's app: this Python, this tree, no settings."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("FLASK_", "LITESTACK_", "GUNICORN_"))
        and name not in {"PORT", "WEB_CONCURRENCY", "FORWARDED_ALLOW_IPS"}
    }
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    return kept | {"PATH": path, "PYTHONPATH": str(TREE), "PYTHONUNBUFFERED": "1"} | variables


class Server:
    """A server process that listens on ``port``, and what it printed."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.process = process
        self.port = port
        self.log = log

    @property
    def pid(self) -> int:
        return self.process.pid

    def get(self, path: str = "/") -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=30) as answer:
            return str(answer.read().decode())

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def children(self) -> list[int]:
        text = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        return [int(pid) for pid in text.split()]

    def terminate(self) -> int:
        """Send SIGTERM and return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)


@contextmanager
def running(
    command: Sequence[str],
    folder: Path,
    variables: Mapping[str, str] | None = None,
    *,
    port: int | None = None,
    logs: Path | None = None,
) -> Iterator[Server]:
    """Run a server in a folder with PORT set, until the block ends; wait for its first answer.

    :param logs: the folder for what it prints; by default that in which it runs.
    """
    port = port or free_port()
    log = (logs or folder) / f"server-{port}.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment(PORT=str(port), **(variables or {})),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    server = Server(process, port, log)
    try:
        wait_until(lambda: _answers(server), lambda: f"it does not answer: {server.output()}")
        yield server
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_until(condition: Callable[[], object], message: Callable[[], str] = lambda: "") -> None:
    """Wait for a condition, for PATIENCE seconds at most."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, message()
        time.sleep(0.05)


def _answers(server: Server) -> bool:
    assert server.process.poll() is None, f"it has ended: {server.output()}"
    try:
        server.get()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True

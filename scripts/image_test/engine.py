"""Builds and runs images: with Docker, or without a daemon by buildah and podman."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import base

#: Seconds for one command of an engine; a build installs packages from the network.
PATIENCE = 900

#: The limits of a container; without them the tools ask for more than some machines give.
LIMITS = ["--ulimit", "nofile=10240:10240", "--ulimit", "nproc=4096:4096"]


def run(command: Sequence[str], *, check: bool = True) -> str:
    """Run a command; return what it printed on standard output."""
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    if check and done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-25:])
        raise SystemExit(f"`{' '.join(command[:1])} ... {command[-1]}` did not succeed:\n{tail}")
    return done.stdout.strip()


class Docker:
    """The docker command, with a daemon that answers."""

    command: Sequence[str] = ["docker"]

    def build(self, context: Path, name: str) -> None:
        run([*self.command, "build", "--quiet", "--tag", name, str(context)])

    def options(self, port: int) -> list[str]:
        """How a container gets its port, and what else it needs to run."""
        return ["--publish", f"127.0.0.1:{port}:{port}"]

    def image(self, name: str) -> dict[str, Any]:
        """Return what is known of an image."""
        [found] = json.loads(run([*self.command, "image", "inspect", name]))
        return dict(found)

    def health_check(self, name: str) -> list[str]:
        """Return the command of the image's HEALTHCHECK."""
        image = self.image(name)
        check = image.get("Healthcheck") or image["Config"]["Healthcheck"]
        assert check["Test"][0] == "CMD", check
        return list(check["Test"][1:])

    def remove(self, *, images: Sequence[str], volumes: Sequence[str]) -> None:
        for volume in volumes:
            run([*self.command, "volume", "rm", "--force", volume], check=False)
        for image in images:
            run([*self.command, "image", "rm", "--force", image], check=False)


class Podman(Docker):
    """buildah builds and podman runs, as root, in a store of our own; nothing is pulled."""

    def __init__(self) -> None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        self._cache = cache / "flask-litestack" / "image-test"
        self._store = self._usable_store()
        self.command = [
            "podman",
            *self._store,
            "--runtime",
            "runc",
            "--cgroup-manager",
            "cgroupfs",
        ]

    def _usable_store(self) -> list[str]:
        """Choose overlay where the kernel has it, else copies."""
        for driver in ("overlay", "vfs"):
            place = self._cache / driver
            place.mkdir(parents=True, exist_ok=True)
            # podman wants a short path for what is of no use after a reboot.
            store = ["--root", str(place), "--runroot", f"/run/litestack-{driver}"]
            store += ["--storage-driver", driver]
            if subprocess.run(["buildah", *store, "images"], capture_output=True).returncode == 0:
                return store
        raise SystemExit(f"buildah can use neither overlay nor vfs in {self._cache}.")

    def build(self, context: Path, name: str) -> None:
        for image in base.images_of(context / "Dockerfile"):
            base.provide(image, ["buildah", *self._store], run)
        with tempfile.TemporaryDirectory() as settings:
            options = ["--isolation", "chroot", "--network", "host", "--pull-never", *LIMITS]
            # Only Docker's format knows HEALTHCHECK.
            options += ["--quiet", "--format", "docker", *_package_index(Path(settings))]
            run(["buildah", *self._store, "build", *options, "--tag", name, str(context)])

    def options(self, port: int) -> list[str]:
        return ["--network", "host", "--no-healthcheck", *LIMITS]


def _package_index(folder: Path) -> list[str]:
    """Let pip in RUN use this machine's package index: its settings are mounted, not copied.

    Of the mount only an empty file stays in the image.
    """
    settings = {}
    for line in run([sys.executable, "-m", "pip", "config", "list"], check=False).splitlines():
        key, _, value = line.partition("=")
        settings[key.rpartition(".")[2]] = value.strip("'\"")
    lines = ["[global]"]
    options = []
    for key in ("index-url", "extra-index-url", "trusted-host", "proxy"):
        places = [p for p in settings.get(key, "").split() if not p.startswith("file:")]
        if places:
            lines.append(f"{key} = {' '.join(places)}")
    if "cert" in settings:
        certificates = str(Path(settings["cert"]).parent)
        lines.append(f"cert = {settings['cert']}")
        options += ["--volume", f"{certificates}:{certificates}:ro"]
    file = folder / "pip.conf"
    file.write_text("\n".join(lines) + "\n")
    return [*options, "--volume", f"{file}:/etc/pip.conf:ro"]


class Container:
    """A container of an image, on a volume and a port of its own; removed at the end."""

    def __init__(
        self,
        engine: Docker,
        image: str,
        *,
        memory: str = "256m",
        options: Sequence[str] = (),
        command: Sequence[str] = (),
    ) -> None:
        self._engine = engine
        self.port = free_port()
        self.name = f"litestack-{self.port}"
        limits = ["--memory", memory, "--memory-swap", memory]
        given = ["--name", self.name, "--env", f"PORT={self.port}", *limits, *options]
        run([*engine.command, "create", *given, *engine.options(self.port), image, *command])

    def __enter__(self) -> Container:
        return self

    def __exit__(self, *_: object) -> None:
        run([*self._engine.command, "rm", "--force", "--volumes", self.name], check=False)

    def begin(self) -> None:
        """Start it, and wait until its first process has a handler for SIGTERM.

        Before that the kernel does not deliver the signal to the first process of a container.
        """
        run([*self._engine.command, "start", self.name])
        caught = 0
        while not caught & 1 << (signal.SIGTERM - 1):
            status = self.execute("cat", "/proc/1/status")
            caught = int(status.partition("SigCgt:")[2].split()[0], 16)

    def start(self) -> float:
        """Start it and wait for /up; return the seconds from the start of its first process."""
        run([*self._engine.command, "start", self.name])
        self._wait()
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        # Field 22 of /proc/PID/stat, in ticks since the machine's boot; the name may have spaces.
        stat = self.execute("cat", "/proc/1/stat").rpartition(")")[2].split()
        return now - int(stat[19]) / os.sysconf("SC_CLK_TCK")

    def _wait(self) -> None:
        began = looked = time.monotonic()
        while True:
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=30) as connection:
                    request = "GET /up HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
                    connection.sendall(request.encode())
                    if connection.recv(64).startswith(b"HTTP/1.1 200"):
                        return
            except OSError:
                pass
            now = time.monotonic()
            if now > looked + 1:  # not each time: it takes as long as a start
                looked = now
                if not self._state()["Running"] or now > began + 60:
                    raise SystemExit(f"{self.name} does not answer:\n{self.logs()}")
            time.sleep(0.005)

    def stop(self) -> tuple[int, float]:
        """Send SIGTERM; return the exit code and the seconds it took."""
        began = time.monotonic()
        run([*self._engine.command, "stop", "-t", "30", self.name])
        return int(self._state()["ExitCode"]), time.monotonic() - began

    def kill(self) -> None:
        """Send SIGKILL to all of it, as a host that runs out of memory would."""
        run([*self._engine.command, "kill", "--signal", "KILL", self.name])
        with suppress(subprocess.TimeoutExpired):
            run([*self._engine.command, "wait", self.name])

    def execute(self, *command: str, user: str | None = None) -> str:
        """Run a command in it, which must succeed; return what it printed."""
        options = [] if user is None else ["--user", user]
        return run([*self._engine.command, "exec", *options, self.name, *command])

    def memory(self) -> float:
        """Return the proportional set size of all its processes, in MB."""
        # Nothing but the shell and sed, which share no page with Python.
        script = (
            "for p in /proc/[0-9]*; do [ $p = /proc/$$ ] || "
            "sed -n 's/^Pss: *\\([0-9]*\\) kB/\\1/p' $p/smaps_rollup 2>/dev/null; done"
        )
        return sum(map(int, self.execute("sh", "-c", script).split())) / 1024

    def logs(self) -> str:
        done = subprocess.run(
            [*self._engine.command, "logs", self.name],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return done.stdout

    def _state(self) -> dict[str, Any]:
        [found] = json.loads(run([*self._engine.command, "container", "inspect", self.name]))
        return dict(found["State"])


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])

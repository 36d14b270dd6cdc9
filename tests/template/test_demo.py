from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

FIRST_START = 240.0  # seconds; packages are downloaded
NEXT_START = 60.0


@contextmanager
def demo(
    repository: Path, home: Path, *arguments: str, within: float
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run scripts/demo as somebody whose home is empty, until it says where the blog is."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(home)}
    process = subprocess.Popen(
        ["scripts/demo", *arguments],
        cwd=repository,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process, said_until(process, "Ctrl-C ends it.", within)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def said_until(process: subprocess.Popen[str], last: str, within: float) -> str:
    assert process.stdout
    deadline, said = time.monotonic() + within, ""
    for line in process.stdout:
        said += line
        if last in line:
            return said
        assert time.monotonic() < deadline, said
    pytest.fail(said)


@pytest.mark.timeout(FIRST_START + NEXT_START + 60)
def test_a_clean_clone_ends_in_a_blog_and_starts_again_at_once(
    repository: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    with demo(repository, home, within=FIRST_START) as (process, said):
        assert "Log in as demo@example.com with litestack-demo" in said
        url = said.partition("The blog is at ")[2].split()[0]
        with urllib.request.urlopen(url, timeout=10) as response:
            page = response.read().decode()
        assert page.count('class="teaser"') == 10
        os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does
        assert process.wait(40) == 0
        assert "Stopped." in process.stdout.read()

    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    started = time.monotonic()
    with demo(repository, home, port, within=NEXT_START) as (process, said):
        assert "Making" not in said
        assert "0 posts added." in said
        assert f"http://localhost:{port}\n" in said
        assert time.monotonic() - started < NEXT_START
        process.terminate()
        assert process.wait(40) == 0
    assert list(home.iterdir()) == []


@pytest.mark.parametrize(
    ("port", "complaint"), [("99999", "port 99999 cannot be had"), ("x", "invalid int value: 'x'")]
)
def test_a_bad_port_is_said_before_anything_is_made(
    repository: Path, tmp_path: Path, port: str, complaint: str
) -> None:
    done = subprocess.run(
        ["scripts/demo", port], cwd=repository, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert complaint in done.stderr


def test_a_port_in_use_is_said(repository: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        done = subprocess.run(
            ["scripts/demo", port], cwd=repository, capture_output=True, text=True, check=False
        )
    assert done.returncode != 0
    assert f"port {port} cannot be had: Address already in use" in done.stderr


def test_without_a_python_that_is_new_enough_it_says_so(repository: Path, tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("sh", "dirname"):
        (tools / tool).symlink_to(f"/usr/bin/{tool}")
    (tools / "python3").write_text("#!/bin/sh\nexit 1\n")
    (tools / "python3").chmod(0o755)
    done = subprocess.run(
        ["/bin/sh", "scripts/demo"],
        cwd=repository,
        env={"PATH": str(tools)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert len(done.stderr.splitlines()) == 1
    assert "Python 3.11" in done.stderr

"""A web process that forks (multiprocessing in a view, say) while clients are connected."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.cable.client import Client
from tests.cable.conftest import Site, make_site, port, site  # noqa: F401


@contextmanager
def forked(function: Callable[[], object]) -> Iterator[int]:
    """Run a function in a forked child, which then lives on until the block ends."""
    pid = os.fork()
    if pid == 0:
        try:
            function()
            time.sleep(60)
        finally:
            os._exit(1)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_child_does_not_hold_its_parents_connections_open(site: Site, port: int) -> None:  # noqa: F811
    with Client(port, "/cable?user=ann") as client:
        client.subscribe("posts/7")
        with forked(lambda: None), site.app.app_context():
            site.litestack.cable.disconnect("ann")
            assert client.read_until_close() == 4001
            assert client.socket.recv(100) == b""


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="Linux only")
def test_a_child_keeps_no_handle_of_other_processes(site: Site, port: int) -> None:  # noqa: F811
    def handles() -> list[str]:
        found = (f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd"))
        return [target for path in found if "pidfd" in (target := _target(path))]

    with Client(port) as client, forked(lambda: None) as peer, site.app.app_context():
        client.subscribe("posts/7")
        site.litestack.cable.hub()._peers._watch([peer])
        assert handles() != []
        pid = os.fork()
        if pid == 0:
            os._exit(len(handles()))
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def _target(path: str) -> str:
    try:
        return os.readlink(path)
    except FileNotFoundError:
        return ""


def test_a_child_broadcasts_to_its_parents_clients(site: Site, port: int) -> None:  # noqa: F811
    with Client(port) as client:
        client.subscribe("posts/7")
        with forked(lambda: site.broadcast("posts/7", "from the child")):
            assert client.read()["data"] == "from the child"
        site.broadcast("posts/7", "from the parent")
        assert client.read()["data"] == "from the parent"


def test_a_child_that_ends_normally_says_no_goodbye_for_its_parent(
    site: Site,  # noqa: F811
    port: int,  # noqa: F811
) -> None:
    with Client(port) as client:
        client.subscribe("posts/7")
        pid = os.fork()
        if pid == 0:
            site.litestack.cable.stop()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        site.broadcast("posts/7", "still here")
        assert client.read()["data"] == "still here"

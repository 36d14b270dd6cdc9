"""kill -9 of each process of the server under load: what was acknowledged is done, once."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers import TREE, Server, running, wait_until

from .ledger import GUNICORN, Customers, books, create_app, litestack


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    """The data folder, with an app in this process that looks at it."""
    data = tmp_path / "data"
    with create_app(data).app_context():
        yield data
        litestack.db.close_session()
        litestack.db.engine.dispose()


def job_workers() -> list[int]:
    return [worker.pid for worker in litestack.jobs.workers()]


def web_workers(server: Server) -> list[int]:
    return [pid for pid in server.children() if pid not in job_workers()]


def whole(server: Server) -> bool:
    """Whether there is a process for the web and one for the jobs."""
    return len(job_workers()) == 1 and len(web_workers(server)) == 1


def take(count: int, customers: Customers, server: Server) -> None:
    """Wait for so many more orders."""
    wanted = len(customers.taken) + count
    wait_until(lambda: len(customers.taken) >= wanted, server.output)


def kill(pid: int, server: Server) -> None:
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: pid not in server.children(), server.output)


def is_settled() -> bool:
    counts = litestack.jobs.counts()
    return counts["queued"] + counts["running"] + counts["scheduled"] == 0


def check(taken: list[int]) -> None:
    """Compare the books: no order is missing, and each is shipped once."""
    ordered, shipped = books()
    assert set(taken) <= set(ordered)
    assert shipped == ordered
    assert litestack.jobs.counts()["failed"] == 0


@pytest.mark.parametrize("victim", ["web", "jobs"])
def test_a_killed_worker_is_replaced_and_loses_nothing(data: Path, victim: str) -> None:
    with running(GUNICORN, TREE, {"LITESTACK_DATA_PATH": str(data)}, logs=data.parent) as server:
        with Customers(server.port) as customers:
            for _ in range(3):
                wait_until(lambda: whole(server), server.output)
                take(50, customers, server)
                [pid] = web_workers(server) if victim == "web" else job_workers()
                kill(pid, server)
            wait_until(lambda: whole(server), server.output)
        assert customers.refused == []
        if victim == "jobs":
            assert customers.unanswered == 0
        wait_until(is_settled, server.output)
        check(customers.taken)
        assert server.terminate() == 0


def test_when_the_master_is_killed_all_end_and_the_next_start_finds_everything(data: Path) -> None:
    variables = {"LITESTACK_DATA_PATH": str(data)}
    with running(GUNICORN, TREE, variables, logs=data.parent) as server:
        wait_until(lambda: whole(server), server.output)
        workers = server.children()
        with Customers(server.port) as customers:
            take(100, customers, server)
            server.process.kill()
            server.process.wait()
            wait_until(lambda: not any(map(is_there, workers)), server.output)
        assert customers.refused == []
    with running(GUNICORN, TREE, variables, logs=data.parent, port=server.port) as server:
        with Customers(server.port, first=1_000_000) as later:
            take(100, later, server)
        wait_until(is_settled, server.output)
        assert later.refused == []
        check(customers.taken + later.taken)
        assert server.terminate() == 0


def is_there(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()

"""Jobs as a role of one of gunicorn's own workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from ..servers import PATIENCE, TREE, environment, free_port
from . import jobs_app
from .jobs_app import litestack
from .workers import Box, box_at, wait_until

CONFIG = """
from flask_litestack.jobs.gunicorn_role import add_worker as on_reload
from flask_litestack.jobs.gunicorn_role import add_worker as on_starting
worker_class = "flask_litestack.jobs.gunicorn_role.RoleWorker"
threads = 2
preload_app = True
control_socket_disable = True
graceful_timeout = 10
"""


class Server:
    def __init__(self, box: Box, folder: Path, **variables: str) -> None:
        (folder / "conf.py").write_text(CONFIG)
        self.port = free_port()
        log = folder / "gunicorn.log"
        box.logs.append(log)
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "gunicorn", "-c", str(folder / "conf.py")),
                    *("-b", f"127.0.0.1:{self.port}", "tests.processes.jobs_app:create_app()"),
                ],
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=TREE,
                env=environment(**{**box.variables, **variables}),
                start_new_session=True,
            )
        box.commands.append(self.process)
        wait_until(self.answers, "gunicorn serves")

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/", timeout=5) as answer:
                return bool(answer.read() == b"served")
        except OSError:
            return False

    def children(self) -> list[int]:
        pid = self.process.pid
        return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    with box_at(tmp_path / "data") as box:
        yield box


def one_worker(box: Box) -> int:
    wait_until(lambda: len(box.worker_pids()) == 1, "one process runs jobs")
    return box.worker_pids()[0]


def test_web_and_jobs_are_one_tree(box: Box, tmp_path: Path) -> None:
    server = Server(box, tmp_path)
    worker = one_worker(box)
    assert worker in server.children()
    assert len(server.children()) == 2
    jobs_app.insert.enqueue(1)
    box.wait_until_done()
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: box.worker_pids() not in ([], [worker]), "it is replaced")
    jobs_app.insert.enqueue(2)
    box.wait_until_done()
    assert box.rows() == [1, 2]
    web = next(pid for pid in server.children() if pid not in box.worker_pids())
    os.kill(web, signal.SIGKILL)
    wait_until(lambda: len(server.children()) == 2 and server.answers(), "the web is back")
    assert len(box.worker_pids()) == 1
    server.process.terminate()
    assert server.process.wait(PATIENCE) == 0
    assert box.worker_pids() == []


def test_a_reload_replaces_it_and_a_stop_lets_its_job_end(box: Box, tmp_path: Path) -> None:
    server = Server(box, tmp_path)
    before = one_worker(box)
    server.process.send_signal(signal.SIGHUP)
    wait_until(lambda: box.worker_pids() not in ([], [before]), "a new one runs jobs", 40)
    wait_until(lambda: before not in box.worker_pids(), "the old one has ended", 40)
    assert len(box.worker_pids()) == 1
    wait_until(lambda: len(server.children()) == 2, "the old generation has ended")
    job = jobs_app.wait_for.enqueue(1, 1.0)
    box.wait_for("waiting-1")
    server.process.terminate()
    assert server.process.wait(PATIENCE) == 0
    after = litestack.jobs.get(job.id)
    assert after is not None
    assert after.state == "succeeded"


def test_a_job_that_outlasts_the_grace_time_is_put_back(box: Box, tmp_path: Path) -> None:
    server = Server(box, tmp_path, FLASK_LITESTACK_JOBS_GRACE="0.5")
    one_worker(box)
    job = jobs_app.wait_for.enqueue(1, 60.0)
    box.wait_for("waiting-1")
    server.process.terminate()
    assert server.process.wait(PATIENCE) == 0
    after = litestack.jobs.get(job.id)
    assert after is not None
    assert (after.state, after.crashes) == ("queued", 0)


def test_off_by_setting(box: Box, tmp_path: Path) -> None:
    server = Server(box, tmp_path, FLASK_LITESTACK_JOBS_IN_SERVER="false")
    assert len(server.children()) == 1
    assert box.worker_pids() == []


def test_a_worker_that_cannot_run_says_why_and_is_replaced_slowly(box: Box, tmp_path: Path) -> None:
    """gunicorn starts another one at once, whatever the reason."""
    Server(box, tmp_path)
    worker = one_worker(box)
    with litestack.db.write() as session:
        session.execute(text("UPDATE litestack_schema SET version = 99, readable_from = 99"))
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: "The job worker cannot run: the tables of jobs" in box.output(), "said")
    time.sleep(2)
    assert box.output().count("Booting worker") == 3
    assert "Traceback" not in box.output()
    with litestack.db.write() as session:
        session.execute(text("UPDATE litestack_schema SET version = 1, readable_from = 1"))
    assert one_worker(box) != worker

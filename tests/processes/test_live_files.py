"""No process opens a database file that it has open: closing it would drop SQLite's locks.

Every Python process of the run reports what it opens, by an audit hook that the site module loads.
Our own guard is off, so that it cannot be what keeps our code from it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.servers import TREE, environment, running, wait_until

from .ledger import GUNICORN, Customers

HOOK = """
import os, sys

log = os.open(os.environ["OPENED"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

def report(line):
    os.write(log, f"{line} {os.getpid()} {' '.join(sys.argv[:4])}\\n".encode())

def has_open(path):
    try:
        file = os.stat(path)
    except OSError:
        return False
    for fd in os.listdir("/proc/self/fd"):
        try:
            other = os.stat(f"/proc/self/fd/{fd}")
        except OSError:
            continue
        if (other.st_dev, other.st_ino) == (file.st_dev, file.st_ino):
            return True
    return False

def watch(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes)):
        path = os.fsdecode(arguments[0])
        # Not -wal: SQLite has no locks on it, and our syncer does open it (see sqlite/sync.py).
        if path.endswith((".sqlite3", ".sqlite3-shm")) and has_open(path):
            report(f"live {path}")

sys.addaudithook(watch)
report("watched")
"""

COMMANDS = [
    ["litestack", "status"],
    ["litestack", "doctor"],
    ["litestack", "dbconsole"],
    ["litestack", "jobs", "list"],
    ["litestack", "cache", "stats"],
    ["litestack", "cache", "clear"],
    ["litestack", "cable", "send", "orders", "1"],
    ["litestack", "litestream", "config"],
    ["litestack", "worker", "--drain"],
    ["litestack", "backup", "{copies}"],
    ["litestack", "backup", "{copies}", "--compress", "--keep", "1"],
    ["litestack", "verify", "{copy}"],
]

OPENS_A_LIVE_FILE = """
from tests.processes.ledger import create_app, litestack
app = create_app()
with app.app_context():
    open(litestack.db.path, "rb").close()
"""


class Processes:
    """Runs processes that are watched, on one data folder."""

    def __init__(self, folder: Path) -> None:
        self.data = folder / "data"
        self.log = folder / "opened.log"
        (folder / "hook").mkdir()
        (folder / "hook" / "sitecustomize.py").write_text(HOOK)
        self.variables = {
            "PYTHONPATH": os.pathsep.join([str(folder / "hook"), str(TREE)]),
            "OPENED": str(self.log),
            "LITESTACK_DATA_PATH": str(self.data),
            "FLASK_LITESTACK_GUARD": "false",
            "FLASK_LITESTACK_LITESTREAM_URL": f"file://{folder}/elsewhere",
        }

    def run(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=TREE,
            env=environment(**self.variables),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def flask(self, *arguments: str) -> str:
        return self.run("-m", "flask", "--app", "tests.processes.ledger:create_app", *arguments)

    def reported(self, what: str) -> list[str]:
        return [line for line in self.log.read_text().splitlines() if line.startswith(what)]


def test_no_command_and_no_request_opens_a_file_that_its_process_has_open(tmp_path: Path) -> None:
    processes = Processes(tmp_path)
    copies = tmp_path / "copies"
    with running(GUNICORN, TREE, processes.variables, logs=tmp_path) as server:
        with Customers(server.port) as customers:
            wait_until(lambda: len(customers.taken) > 20, server.output)
            for command in COMMANDS:
                copy = max(copies.glob("2*"), default=Path("none"))
                processes.flask(*(word.format(copies=copies, copy=copy) for word in command))
            assert server.get("/up") == "up\n"
        assert customers.refused == []
        assert server.terminate() == 0
    processes.flask("litestack", "restore", "--yes", str(max(copies.glob("2*"))))

    assert processes.reported("live") == []
    assert len(processes.reported("watched")) >= len(COMMANDS) + 2


def test_the_hook_sees_who_does(tmp_path: Path) -> None:
    processes = Processes(tmp_path)

    processes.run("-c", OPENS_A_LIVE_FILE)

    [line] = processes.reported("live")
    assert str(processes.data / "data.sqlite3") in line

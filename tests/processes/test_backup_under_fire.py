"""Backups of a server that takes orders all the time, and what becomes of a restored one."""

from __future__ import annotations

import itertools
import subprocess
import sys
from contextlib import closing
from pathlib import Path

from flask_litestack.sqlite import driver
from flask_litestack.sqlite.backup import verify
from tests.servers import TREE, environment, running, wait_until

from .ledger import GUNICORN, Customers, books, create_app, litestack

BACKUPS = 20
CUSTOMERS = 4

SAID = "SELECT count(*) FROM litestack_cable_messages WHERE channel = 'orders'"


def flask(data: Path, *arguments: str) -> str:
    """Run a ``flask`` command on a data folder; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "flask", "--app", "tests.processes.ledger:create_app", *arguments],
        cwd=TREE,
        env=environment(LITESTACK_DATA_PATH=str(data)),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def look(backup: Path) -> tuple[int, int]:
    """Check that a backup is of one moment; return its orders and its shipments."""
    verify(backup)
    with closing(driver.module.connect(backup / "data.sqlite3")) as connection:

        def count(sql: str) -> int:
            return int(connection.execute(f"SELECT count(*) FROM {sql}").fetchone()[0])

        taken, shipped = count('"order"'), count("shipment")
        # An order and its job are one commit, and so are a shipment and the end of its job.
        assert count("litestack_jobs") == taken
        assert count("litestack_jobs WHERE state = 'succeeded'") == shipped
    with closing(driver.module.connect(backup / "cable.sqlite3")) as connection:
        (said,) = connection.execute(SAID).fetchone()
        # A message follows the commit of its order, before the next order of that customer.
        assert 0 <= taken - said <= CUSTOMERS
    return taken, shipped


def test_every_backup_is_of_one_moment_and_a_restored_one_ships_the_rest_once(
    tmp_path: Path,
) -> None:
    data, backups = tmp_path / "data", tmp_path / "backups"
    with running(GUNICORN, TREE, {"LITESTACK_DATA_PATH": str(data)}, logs=tmp_path) as server:
        with create_app(data).app_context(), Customers(server.port, CUSTOMERS) as customers:
            wait_until(lambda: len(customers.taken) > 20, server.output)
            made = []
            for _ in range(BACKUPS):
                before = len(customers.taken)
                made.append(litestack.backup(backups))
                wait_until(lambda n=before: len(customers.taken) > n + CUSTOMERS, server.output)
            litestack.db.close_session()
            litestack.db.engine.dispose()
        assert customers.refused == []
        assert customers.unanswered == 0
        assert server.terminate() == 0

    found = [look(backup) for backup in made]
    assert all(a[0] < b[0] for a, b in itertools.pairwise(found)), "it was under fire"
    chosen = max(range(BACKUPS), key=lambda n: found[n][0] - found[n][1])
    taken, shipped = found[chosen]
    restored = tmp_path / "restored"
    flask(restored, "litestack", "restore", "--yes", str(made[chosen]))
    flask(restored, "litestack", "worker", "--drain")
    with create_app(restored).app_context():
        ordered, done = books()
        assert done == ordered
        assert len(ordered) == taken >= shipped
        litestack.db.close_session()
        litestack.db.engine.dispose()

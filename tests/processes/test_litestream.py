"""A continuous copy: the volume is lost, and the app starts again with its rows."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.cli.commands import SHOP, as_json, litestack
from tests.servers import environment

WRITER = """
import signal, sys, time
from shop import Item, create_app, litestack

stopping = []
signal.signal(signal.SIGTERM, lambda *_: stopping.append(1))
with create_app().app_context():
    litestack.db.create_all()
    n = 0
    while not stopping:
        with litestack.db.write() as session:
            session.add(Item(name=str(n)))
        print(f"{time.time()} {n}", flush=True)
        n += 1
        time.sleep(0.01)
"""

#: What may be lost, in seconds, as LITESTACK_LITESTREAM_INTERVAL sets it; and what a busy machine
#: may need on top for writing the copy. Ten kills at random moments cost 0.03 to 0.47 seconds.
INTERVAL = 0.5
MARGIN = 0.5

COUNT = """
from sqlalchemy import func, select
from shop import Item, create_app, litestack
with create_app().app_context():
    print(litestack.db.session.scalar(select(func.count(Item.id))))
"""


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(SHOP)
    (tmp_path / "writer.py").write_text(WRITER)
    (tmp_path / "count.py").write_text(COUNT)
    return tmp_path


def variables(shop: Path) -> dict[str, str]:
    return {
        "FLASK_APP": "shop",
        "FLASK_LITESTACK_LITESTREAM_URL": f"file://{shop}/copy",
        "FLASK_LITESTACK_LITESTREAM_INTERVAL": str(INTERVAL),
        "LITESTACK_DATA_PATH": str(shop / "data"),
        "PYTHONPATH": str(shop),
    }


def command(shop: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "flask", "litestack", "litestream", "run", "--", *words]


@contextmanager
def writing(shop: Path) -> Iterator[subprocess.Popen[str]]:
    """Run the writer under litestream, its output in a file, as a process group of its own."""
    with open(shop / "acknowledged", "w") as output:
        process = subprocess.Popen(
            command(shop, sys.executable, "writer.py"),
            cwd=shop,
            env=environment(**variables(shop)),
            stdout=output,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):  # it has ended by itself
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def acknowledged(shop: Path) -> list[tuple[float, int]]:
    """When each row was acknowledged; litestream's own lines are in the same file."""
    found = []
    for line in (shop / "acknowledged").read_text().splitlines():
        words = line.split()
        if len(words) == 2 and words[1].isdigit():
            found.append((float(words[0]), int(words[1])))
    return found


def wait_for_rows(shop: Path, number: int) -> None:
    end = time.monotonic() + 60
    while len(acknowledged(shop)) < number:
        assert time.monotonic() < end, (shop / "acknowledged").read_text()
        time.sleep(0.05)


def start_anew(shop: Path) -> subprocess.CompletedProcess[str]:
    """Start an app under litestream that counts its rows, and ends."""
    return subprocess.run(
        command(shop, sys.executable, "count.py"),
        cwd=shop,
        env=environment(**variables(shop)),
        capture_output=True,
        text=True,
        timeout=120,
    )


def rows_after_start(shop: Path) -> int:
    done = start_anew(shop)
    assert done.returncode == 0, done.stderr
    return int(next(line for line in done.stdout.splitlines() if line.isdigit()))


def test_kill_9_of_everything_and_a_lost_volume_cost_no_more_than_the_interval(
    shop: Path,
) -> None:
    with writing(shop) as process:
        wait_for_rows(shop, 300)
        os.killpg(process.pid, signal.SIGKILL)
        killed_at = time.time()
    shutil.rmtree(shop / "data")
    rows = rows_after_start(shop)
    written = acknowledged(shop)
    lost = killed_at - written[rows][0] if rows < len(written) else 0.0
    print(f"lost: {lost:.2f} s")
    assert lost <= INTERVAL + MARGIN


def test_sigterm_loses_nothing(shop: Path) -> None:
    with writing(shop) as process:
        wait_for_rows(shop, 100)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    shutil.rmtree(shop / "data")
    assert rows_after_start(shop) == len(acknowledged(shop))


def test_the_database_goes_back_to_a_moment_and_goes_on_from_there(shop: Path) -> None:
    with writing(shop) as process:
        wait_for_rows(shop, 100)
        time.sleep(2)
        moment = time.time()
        time.sleep(2)
        process.send_signal(signal.SIGTERM)
        process.wait(30)
    timestamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment))
    arguments = ("litestream", "restore", "--timestamp", timestamp, "--yes")
    done = litestack(shop, *arguments, **variables(shop))
    assert done.returncode == 0, done.stderr
    before = [n for at, n in acknowledged(shop) if at < moment - 2.5]
    after = [n for at, n in acknowledged(shop) if at > moment + 1]
    rows = rows_after_start(shop)
    assert before[-1] < rows <= after[0]
    assert len(list((shop / "data").glob("before-restore-*/data.sqlite3"))) == 1

    with writing(shop) as process:
        wait_for_rows(shop, 50)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    for _ in range(2):
        shutil.rmtree(shop / "data")
        assert rows_after_start(shop) == rows + len(acknowledged(shop))


def test_a_database_that_the_app_makes_when_it_is_loaded_is_not_taken_for_the_lost_one(
    shop: Path,
) -> None:
    (shop / "shop.py").write_text(
        SHOP.replace(
            "    return app",
            "    with app.app_context(): litestack.db.create_all()\n    return app",
        )
    )
    assert rows_after_start(shop) == 0  # with nothing there to restore
    with writing(shop) as process:
        wait_for_rows(shop, 50)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert rows_after_start(shop) == len(acknowledged(shop))  # it was there before
    shutil.rmtree(shop / "data")
    assert rows_after_start(shop) == len(acknowledged(shop))
    shutil.rmtree(shop / "data")
    (shop / "data").mkdir()
    (shop / "data" / "data.sqlite3").touch()  # of a start that was killed at once
    assert rows_after_start(shop) == len(acknowledged(shop))


def test_the_folder_must_be_known_before_the_app_is_loaded(shop: Path) -> None:
    unset = {**variables(shop), "LITESTACK_DATA_PATH": ""}
    done = litestack(shop, "litestream", "run", "--", "true", **unset)
    assert done.returncode == 1
    assert "LITESTACK_DATA_PATH" in done.stderr

    elsewhere = {**variables(shop), "FLASK_LITESTACK_DATA_PATH": str(shop / "other")}
    done = litestack(shop, "litestream", "run", "--", "true", **elsewhere)
    assert done.returncode == 1
    assert f"database is {shop}/other/data.sqlite3" in done.stderr


def test_only_a_litestream_that_runs_counts_as_a_backup(shop: Path) -> None:
    def backup_finding() -> dict[str, str]:
        found = as_json(litestack(shop, "doctor", "--json", **variables(shop)))
        return next(finding for finding in found if finding["check"] == "backup")

    with writing(shop) as process:
        wait_for_rows(shop, 10)
        assert backup_finding()["severity"] == "ok"
        assert f"process {process.pid}" in backup_finding()["what"]
        process.send_signal(signal.SIGTERM)
        process.wait(30)
    assert backup_finding()["severity"] == "warning"
    assert "nothing is copied" in backup_finding()["what"]


def test_a_copy_that_cannot_be_reached_does_not_start_an_empty_app(shop: Path) -> None:
    (shop / "copy" / "data.sqlite3").mkdir(parents=True)
    broken = shop / "copy" / "data.sqlite3" / "ltx"
    broken.write_text("not a folder")
    done = start_anew(shop)
    assert done.returncode == 1
    assert "not started on an empty database" in done.stderr
    assert not (shop / "data" / "data.sqlite3").exists()


def test_without_a_place_to_copy_to_the_setting_is_named(shop: Path) -> None:
    done = litestack(shop, "litestream", "config")
    assert done.returncode == 1
    assert "LITESTACK_LITESTREAM_URL" in done.stderr


def test_the_configuration_lists_the_database_and_not_the_cache(shop: Path) -> None:
    (shop / "data").mkdir()
    (shop / "data" / "cache.sqlite3").touch()
    done = litestack(shop, "litestream", "config", **variables(shop))
    assert done.returncode == 0, done.stderr
    assert "data.sqlite3" in done.stdout
    assert "cache" not in done.stdout
    assert "monitor-interval: 0.45s" in done.stdout
    assert "sync-interval: 0.05s" in done.stdout

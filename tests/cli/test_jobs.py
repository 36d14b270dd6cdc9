from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from flask_litestack.sqlite import driver

from .commands import as_json, flask, litestack

APP = """
import os
from flask import Flask
from flask_litestack import Litestack

litestack = Litestack()

@litestack.task(retries=0)
def act(fail: bool) -> None:
    if fail:
        raise ValueError("no such thing")

@litestack.task(cron="0 4 * * *")
def nightly() -> None:
    pass

def create_app():
    app = Flask(__name__)
    app.config["LITESTACK_DATA_PATH"] = "data"
    litestack.init_app(app)

    @app.cli.command("put")
    def put():
        for fail in (False, True):
            print(act.enqueue(fail).id)

    return app
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(APP)
    return tmp_path


def test_before_the_first_job(folder: Path) -> None:
    assert as_json(litestack(folder, "jobs", "list", "--json")) == []
    assert as_json(litestack(folder, "status", "--json")).get("jobs", {}) in ({}, {"jobs": 0})
    assert "cron tasks are not queued" in str(as_json(litestack(folder, "doctor", "--json")))
    assert not (folder / "data" / "data.sqlite3").exists()


def test_from_enqueue_to_retry(folder: Path) -> None:
    assert flask(folder, "put").stdout.split() == ["1", "2"]
    drained = litestack(folder, "worker", "--drain")
    assert drained.returncode == 1
    assert "1 jobs succeeded, 1 failed" in drained.stderr
    listed = as_json(litestack(folder, "jobs", "list", "--json"))
    assert [(job["id"], job["state"]) for job in listed] == [(2, "failed"), (1, "succeeded")]
    shown = litestack(folder, "jobs", "show", "2")
    assert "ValueError: no such thing" in shown.stdout
    assert "Traceback" in shown.stdout
    details = as_json(litestack(folder, "jobs", "show", "2", "--json"))
    assert details["arguments"] == [[True]]
    assert details["attempts"][0]["error"] == "ValueError: no such thing"
    status = as_json(litestack(folder, "status", "--json"))["jobs"]
    assert status["counts"]["failed"] == 1
    assert status["cron"][0]["task"] == "shop.nightly"
    doctor = as_json(litestack(folder, "doctor", "--json"))
    assert "1 jobs have failed." in str(doctor)
    retried = as_json(litestack(folder, "jobs", "retry", "--all", "--json"))
    assert retried["retried"] == 1
    assert as_json(litestack(folder, "jobs", "cancel", "2", "--json"))["state"] == "cancelled"
    assert as_json(litestack(folder, "jobs", "delete", "2", "--json")) == {"deleted": 2}
    pruned = as_json(litestack(folder, "jobs", "prune", "--older-than", "0s", "--json"))
    assert pruned == {"deleted": 1}
    assert as_json(litestack(folder, "jobs", "list", "--json")) == []


def test_pause_and_resume(folder: Path) -> None:
    flask(folder, "put")
    assert "No worker runs" in str(as_json(litestack(folder, "doctor", "--json")))
    assert as_json(litestack(folder, "jobs", "pause", "default", "--json")) == {"paused": "default"}
    status = as_json(litestack(folder, "status", "--json"))["jobs"]
    assert status["queues"][0]["paused"] is True
    assert "0 jobs succeeded" in litestack(folder, "worker", "--drain").stderr
    assert as_json(litestack(folder, "jobs", "resume", "default", "--json")) == {
        "resumed": "default"
    }
    again = litestack(folder, "jobs", "resume", "default")
    assert again.returncode == 1
    assert "is not paused" in again.stderr


def test_a_job_whose_arguments_are_damaged_can_be_looked_at_and_cancelled(folder: Path) -> None:
    flask(folder, "put")
    with closing(driver.module.connect(folder / "data" / "data.sqlite3")) as connection:
        connection.execute("UPDATE litestack_jobs SET arguments = '[[' WHERE id = 1")
        connection.commit()
    assert as_json(litestack(folder, "jobs", "show", "1", "--json"))["arguments"] == "[["
    assert as_json(litestack(folder, "jobs", "cancel", "1", "--json"))["state"] == "cancelled"


def test_wrong_usage_and_missing_jobs(folder: Path) -> None:
    assert litestack(folder, "jobs", "retry").returncode == 2
    assert litestack(folder, "jobs", "prune", "--older-than", "soon").returncode == 2
    missing = litestack(folder, "jobs", "show", "7")
    assert missing.returncode == 1
    assert "there is no job 7" in missing.stderr
    assert "there is no job 7" in litestack(folder, "jobs", "cancel", "7").stderr
    assert litestack(folder, "worker", "--queues", "a b ,").returncode == 1

"""Many processes open a database that none of them has made yet."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from sqlalchemy import func, select

from flask_litestack import sqlite
from flask_litestack.errors import LockError
from flask_litestack.sqlite.file import opening
from tests.conftest import Post

from .crowd import Voice, make_app, members, together

PROCESSES = 8


def create_and_write(voice: Voice, data: Path) -> None:
    app, litestack = make_app(data)
    voice.say("ready")
    voice.hear()
    with app.app_context():
        litestack.db.create_all()
        session = litestack.db.session
        session.add(Post(title="First"))
        session.commit()
        voice.say(session.connection().exec_driver_sql("PRAGMA journal_mode").scalar())


@pytest.mark.parametrize("attempt", range(3))
def test_the_first_openers_of_a_new_file_all_succeed(tmp_path: Path, attempt: int) -> None:
    data = tmp_path / "data"
    assert together(PROCESSES, create_and_write, data) == ["wal"] * PROCESSES
    app, litestack = make_app(data)
    with app.app_context():
        number = litestack.db.session.scalar(select(func.count()).select_from(Post))
        litestack.db.close_session()
        litestack.db.engine.dispose()
    assert number == PROCESSES


def begin_to_open(voice: Voice, data: Path) -> None:
    with opening(data / "data.sqlite3"):
        voice.say("begun")
        voice.hear()


def test_a_first_opener_that_hangs_is_an_error_for_the_others_in_time(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    with members(1, begin_to_open, data) as [first]:
        first.hear()
        os.kill(first.pid, signal.SIGSTOP)
        began = time.monotonic()
        with pytest.raises(LockError, match=r"data\.sqlite3 .* within 0\.2 s.*end it"):
            sqlite.connect(data / "data.sqlite3", busy_timeout=0.2)
        assert 0.2 <= time.monotonic() - began < 5.0
    connection = sqlite.connect(data / "data.sqlite3", busy_timeout=0.2)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()

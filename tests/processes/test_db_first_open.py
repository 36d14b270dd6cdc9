"""Many processes open a database that none of them has made yet."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import func, select

from tests.conftest import Post

from .crowd import Voice, make_app, together

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

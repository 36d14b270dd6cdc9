"""kill -9 at random moments: what was committed is there, whole; what was not is not."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from sqlalchemy import func, select

from flask_litestack.sqlite.connection import connect
from tests.conftest import Comment, Post

from .crowd import Voice, make_app, members

WRITERS = 3

#: Comments of each transaction, in a few statements: a kill can come between them.
BATCH = 4


def write_for_ever(voice: Voice, data: Path, synchronous: str, writer: int) -> None:
    """Commit batches of comments, and say the number of each once it is committed."""
    app, litestack = make_app(data, synchronous=synchronous)
    with app.app_context():
        session = litestack.db.session
        last = session.scalar(select(func.max(Comment.id)).where(Comment.post_id == writer)) or 0
        number = last
        while True:
            number += 1
            for part in range(BATCH):
                session.add(Comment(post_id=writer, text=f"{number} {part} " + "x" * 500))
                session.flush()
            session.commit()
            voice.say(number)


@pytest.mark.parametrize(
    ("synchronous", "rounds"),
    [
        ("NORMAL", 8),
        ("FULL", 4),
        pytest.param("NORMAL", 100, marks=[pytest.mark.long, pytest.mark.timeout(900)]),
    ],
)
def test_every_acknowledged_commit_survives_kill_9(
    tmp_path: Path, synchronous: str, rounds: int
) -> None:
    data = tmp_path / "data"
    app, litestack = make_app(data)
    with app.app_context():
        litestack.db.create_all()
        with litestack.db.write() as session:
            session.add_all(Post(id=writer, title="x") for writer in range(1, WRITERS + 1))
        litestack.db.engine.dispose()

    seed = random.randrange(10**6)
    print(f"seed {seed}")
    chance = random.Random(seed)
    acknowledged: dict[int, set[str]] = {writer: set() for writer in range(1, WRITERS + 1)}
    for _ in range(rounds):
        kill_writers(data, synchronous, acknowledged, chance)
        stored = look_into(data)
        for writer, numbers in acknowledged.items():
            assert all(parts == BATCH for parts in stored[writer].values()), "half a transaction"
            assert numbers <= set(stored[writer]), "an acknowledged commit is lost"
            # At most the one transaction that each killed process could not report any more.
            assert len(stored[writer]) <= len(numbers) + 1
            numbers.update(stored[writer])


def kill_writers(
    data: Path, synchronous: str, acknowledged: dict[int, set[str]], chance: random.Random
) -> None:
    """Kill the writers one after the other at random moments, and note what they had said."""
    with (
        members(1, write_for_ever, data, synchronous, 1) as one,
        members(1, write_for_ever, data, synchronous, 2) as two,
        members(1, write_for_ever, data, synchronous, 3) as three,
    ):
        crowd = dict(enumerate([*one, *two, *three], start=1))
        firsts = {writer: member.hear() for writer, member in crowd.items()}
        for writer in chance.sample(list(crowd), len(crowd)):
            time.sleep(chance.uniform(0, 0.1))
            os.kill(crowd[writer].pid, signal.SIGKILL)
        for writer, member in crowd.items():
            member.process.join()
            acknowledged[writer].update(map(str, [firsts[writer], *member.heard()]))


def look_into(data: Path) -> dict[int, Counter[str]]:
    """Check the file and return, for each writer, how many parts of each number it holds."""
    stored: dict[int, Counter[str]] = {w: Counter() for w in range(1, WRITERS + 1)}
    with connect(data / "data.sqlite3") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        for writer, text in connection.execute("SELECT post_id, text FROM comment"):
            stored[writer][text.split()[0]] += 1
    connection.close()
    return stored

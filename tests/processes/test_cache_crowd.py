"""Many processes, one cache, kill -9: no error, no torn value, the cap holds."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

from sqlalchemy import text

from flask_litestack.cache import SQLiteCache, backend
from tests.conftest import Post

from .crowd import Voice, make_app, members, together

SIZE = 4 << 20

#: More than fit.
KEYS = 6000


def value_of(key: str, length: int) -> str:
    """A value that says what it must be."""
    return f"{key}/{length}/" + "v" * length + f"/{key}"


def hammer(voice: Voice, folder: Path, seconds: float) -> None:
    cache = SQLiteCache(folder, size=SIZE)
    rng = random.Random(os.getpid())
    voice.say("ready")
    end = time.monotonic() + seconds
    done = 0
    while time.monotonic() < end:
        key = f"key-{rng.randrange(KEYS)}"
        length = rng.choice([10, 100, 1000, 5000, 30_000])
        what = rng.random()
        got: list[Any] = []
        if what < 0.5:
            got = [(key, cache.get(key))]
        elif what < 0.8:
            cache.set(key, value_of(key, length), rng.choice([0, 1, 60]))
        elif what < 0.85:
            keys = [f"key-{rng.randrange(KEYS)}" for _ in range(20)]
            got = list(zip(keys, cache.get_many(*keys), strict=True))
        elif what < 0.9:
            keys = [f"key-{rng.randrange(KEYS)}" for _ in range(20)]
            cache.set_many({key: value_of(key, 200) for key in keys})
        elif what < 0.95:
            cache.inc("count")
            cache.delete(key)
        else:
            got = [(key, cache.get_or_set(key, lambda key=key: value_of(key, 50), 60))]
        for key, value in got:
            if value is not None:
                length = int(value.split("/")[1])
                assert value == value_of(key, length), f"torn: {value[:60]}"
        done += 1
    cache.stats()  # writes what this process counted
    voice.say(done)


def file_bytes(folder: Path) -> int:
    sizes = []
    for suffix in ("", "-wal"):
        try:
            sizes.append(os.stat(folder / f"cache.sqlite3{suffix}").st_size)
        except FileNotFoundError:
            sizes.append(0)
    return sum(sizes)


def test_processes_hammer_a_small_cache_under_kill(tmp_path: Path, caplog: Any) -> None:
    largest = 0
    with members(8, hammer, tmp_path, 6.0) as crowd:
        for member in crowd:
            assert member.hear() == "ready"
        for victim in crowd[:4]:
            end = time.monotonic() + 1
            while time.monotonic() < end:
                largest = max(largest, file_bytes(tmp_path))
                time.sleep(0.02)
            victim.process.kill()
        for survivor in crowd[4:]:
            assert survivor.hear() > 50
        largest = max(largest, file_bytes(tmp_path))
    assert largest <= SIZE * 1.1
    assert not (tmp_path / "cache.sqlite3.corrupt").exists()
    cache = SQLiteCache(tmp_path, size=SIZE)
    stats = cache.stats()
    assert stats.evictions > 0
    (connection,) = cache._access.pool.all
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    cache.close()


def count(voice: Voice, folder: Path) -> None:
    cache = SQLiteCache(folder)
    voice.say("ready")
    voice.hear()
    for _ in range(300):
        assert cache.inc("count") is not None
    voice.say(cache.get("count"))


def test_a_counter_is_atomic_across_processes(tmp_path: Path) -> None:
    assert max(together(4, count, tmp_path)) == 1200


def compute_once(voice: Voice, folder: Path, seconds: float) -> None:
    cache = SQLiteCache(folder)

    def compute() -> int:
        with (folder / "computed").open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(seconds)
        return os.getpid()

    voice.say("ready")
    voice.hear()
    voice.say(cache.get_or_set("key", compute))


def test_one_process_computes_while_the_others_wait(tmp_path: Path) -> None:
    values = together(4, compute_once, tmp_path, 0.3)
    assert len(set(values)) == 1
    assert len((tmp_path / "computed").read_text().split()) == 1


def test_when_the_computing_process_is_killed_another_computes(tmp_path: Path) -> None:
    with members(3, compute_once, tmp_path, 0.5) as crowd:
        for member in crowd:
            member.hear()
        crowd[0].say("go")
        while not (tmp_path / "computed").exists():
            time.sleep(0.01)
        crowd[1].say("go")
        crowd[2].say("go")
        time.sleep(0.1)
        os.kill(crowd[0].pid, signal.SIGKILL)
        killed = time.monotonic()
        values = {member.hear() for member in crowd[1:]}
        assert time.monotonic() - killed < 3
    assert len(values) == 1
    assert len((tmp_path / "computed").read_text().split()) == 2


def commit_and_die(voice: Voice, folder: Path, after: bool) -> None:
    app, litestack = make_app(folder)
    name = "finish" if after else "prepare"
    whole = getattr(backend._Deletion, name)

    def die(deletion: backend._Deletion) -> None:
        if not after:
            whole(deletion)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(backend._Deletion, name, die)
    with app.app_context(), litestack.db.write() as session:
        session.execute(text("UPDATE post SET title = 'new'"))
        litestack.cache.delete("page")
    voice.say("survived")


def test_a_process_killed_around_its_commit_leaves_no_stale_entry(tmp_path: Path) -> None:
    app, litestack = make_app(tmp_path)
    with app.app_context():
        litestack.db.create_all()
        with litestack.db.write() as session:
            session.add(Post(id=1, title="old"))
    for after in (False, True):
        with app.app_context():
            litestack.cache.set("page", "old")
        with members(1, commit_and_die, tmp_path, after) as (member,):
            assert member.heard() == []
        with app.app_context():
            post = litestack.db.session.get(Post, 1)
            assert post is not None
            assert post.title == ("new" if after else "old")
            assert litestack.cache.get("page") is None
            # Nobody can tell whether it was committed, so nothing is stored for a while.
            assert not litestack.cache.set("page", post.title)


def write(voice: Voice, folder: Path, seconds: float) -> None:
    app, litestack = make_app(folder)
    voice.say("ready")
    end = time.monotonic() + seconds
    edits = 0
    while time.monotonic() < end:
        with app.app_context(), litestack.db.write() as session:
            post = session.get(Post, 1)
            assert post is not None
            post.views += 1
            litestack.cache.delete("page")
        edits += 1
        time.sleep(0.002)
    voice.say(edits)


def read(voice: Voice, folder: Path, seconds: float) -> None:
    app, litestack = make_app(folder)
    raw = None
    voice.say("ready")
    end = time.monotonic() + seconds
    hits = stale = 0
    while time.monotonic() < end:
        with app.app_context():
            raw = raw or litestack.db.connect()
            (committed,) = raw.execute("SELECT views FROM post").fetchone()
        with app.app_context():
            page = litestack.cache.get("page")
            if page is None:
                post = litestack.db.session.get(Post, 1)
                assert post is not None
                page = post.views
                litestack.cache.set("page", page)
            else:
                hits += 1
        stale += page < committed
    voice.say((hits, stale))


def test_no_page_is_older_than_the_last_edit_before_the_request(tmp_path: Path) -> None:
    app, litestack = make_app(tmp_path)
    with app.app_context():
        litestack.db.create_all()
        with litestack.db.write() as session:
            session.add(Post(id=1, title="first"))
    with members(2, write, tmp_path, 3.0) as writers, members(3, read, tmp_path, 3.0) as readers:
        for member in (*writers, *readers):
            assert member.hear() == "ready"
        answers = [reader.hear() for reader in readers]
        assert all(writer.hear() > 10 for writer in writers)
    assert sum(hits for hits, _ in answers) > 10
    assert [stale for _, stale in answers] == [0, 0, 0]

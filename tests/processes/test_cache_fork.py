"""A forked child and the cache: locks of its own, and nothing that waits for ever."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from flask_litestack.cache import SQLiteCache

from .crowd import PATIENCE, Voice, members


def wait_for(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def fork_beside_busy_threads(voice: Voice, folder: Path, children: int) -> None:
    cache = SQLiteCache(folder)
    for i in range(100):
        cache.set(f"key-{i}", "x" * 5000)
    stop = threading.Event()

    def work(write: bool) -> None:
        i = 0
        while not stop.is_set():
            cache.get(f"key-{i % 100}")
            if write:
                cache.set(f"key-{i % 100}", "y" * 5000)
            i += 1

    threads = [threading.Thread(target=work, args=(write,)) for write in (False, False, True)]
    for thread in threads:
        thread.start()
    for _ in range(children):
        child = os.fork()
        if not child:
            os._exit(0 if cache.get("key-1") and cache.set("key-1", "z" * 5000) else 1)
        voice.say(wait_for(child))
    stop.set()
    for thread in threads:
        thread.join(PATIENCE)
    voice.say([thread.is_alive() for thread in threads])


@pytest.mark.parametrize("children", [30, pytest.param(300, marks=pytest.mark.long)])
def test_a_fork_waits_until_no_thread_is_inside_the_cache(tmp_path: Path, children: int) -> None:
    """A child that is forked in the middle would wait for a mutex of SQLite's for ever."""
    with members(1, fork_beside_busy_threads, tmp_path, children) as [parent]:
        assert [parent.hear() for _ in range(children)] == [0] * children
        assert parent.hear() == [False] * 3


def open_beside_forks(voice: Voice, folder: Path) -> None:
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            cache = SQLiteCache(folder)
            cache.set("key", 1)
            cache.close()

    thread = threading.Thread(target=work)
    thread.start()
    for _ in range(30):
        child = os.fork()
        if not child:
            threading.Event().wait(0.05)  # it must not keep the parent's locks meanwhile
            os._exit(0 if SQLiteCache(folder).set("of the child", 1) else 1)
        voice.say(wait_for(child))
    stop.set()
    thread.join(PATIENCE)
    voice.say(thread.is_alive())


def test_a_fork_waits_until_no_thread_opens_the_file(tmp_path: Path) -> None:
    with members(1, open_beside_forks, tmp_path) as [parent]:
        assert [parent.hear() for _ in range(30)] == [0] * 30
        assert parent.hear() is False


def fork_and_end(voice: Voice, folder: Path) -> None:
    cache = SQLiteCache(folder)
    cache.set("key", "old")
    if os.fork():
        os._exit(0)
    assert cache.get("key") == "old"
    voice.say("child of nobody")
    voice.hear()
    cache.delete("key")
    cache.set("new", 1)
    voice.say((cache.get("key"), cache.get("new")))
    voice.hear()


def look(voice: Voice, folder: Path) -> None:
    cache = SQLiteCache(folder)
    voice.say((cache.get("key"), cache.get("new")))
    cache.close()


def test_what_a_child_deletes_is_gone_also_when_its_parent_has_ended(tmp_path: Path) -> None:
    with members(1, fork_and_end, tmp_path) as [child]:
        assert child.hear() == "child of nobody"
        # If the child held no lock, this one would delete the log under it when it closes.
        with members(1, look, tmp_path) as [other]:
            assert other.heard() == [("old", None)]
        child.say("delete")
        assert child.hear() == (None, 1)
        with members(1, look, tmp_path) as [other]:
            assert other.heard() == [(None, 1)]
        child.say("end")


def fork_inside(voice: Voice, folder: Path) -> None:
    cache = SQLiteCache(folder)
    cache.set("key", 1)
    with cache._access.taken(cache._clock()) as connection:
        connection.execute("SELECT * FROM entries")
        child = os.fork()
        if not child:
            voice.say((cache.get("key"), cache.set("key", 2)))
            os._exit(0)
        wait_for(child)
    voice.say(cache.get("key"))


def test_a_child_born_inside_the_cache_goes_without(tmp_path: Path) -> None:
    with members(1, fork_inside, tmp_path) as [parent]:
        assert parent.hear() == (None, False)
        assert parent.hear() == 1

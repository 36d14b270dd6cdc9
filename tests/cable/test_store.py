from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from flask_litestack.cable import store as store_module
from flask_litestack.cable.store import Presence, Row, RowKind, Store
from flask_litestack.process.liveness import Life
from flask_litestack.sqlite import driver


class Clock:
    now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    store = Store(tmp_path, retention=60, size=1_000_000, clock=clock)
    yield store
    store.close()


def say(store: Store, number: object, channel: str = "news") -> int:
    return store.append(RowKind.MESSAGE, channel, str(number))


def everything_after(store: Store, position: int) -> list[Row]:
    rows: list[Row] = []
    while found := store.after(rows[-1].id if rows else position):
        rows += found
    return rows


def test_ids_have_no_gaps_and_begin_above_those_of_any_earlier_log(
    store: Store, clock: Clock
) -> None:
    start = store.last_id()
    assert start == int(clock.now * 1e6)
    assert start < 2**53
    assert [say(store, n) for n in range(700)] == list(range(start + 1, start + 701))
    assert [row.id for row in everything_after(store, start)] == list(range(start + 1, start + 701))


def test_the_listener_is_told_in_order_by_however_many_threads(store: Store) -> None:
    told: list[int] = []
    store.listen(lambda rows: told.extend(row.id for row in rows), None)
    threads = [
        threading.Thread(target=lambda: [say(store, n) for n in range(50)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(told) == 200
    assert told == list(range(told[0], told[0] + 200))


def _append_some(path: Path, count: int) -> None:
    store = Store(path, retention=60, size=1_000_000)
    for number in range(count):
        say(store, number, f"of/{os.getpid()}")
    store.close()


def test_processes_that_start_at_once_share_one_log_without_gaps(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_append_some, args=(tmp_path, 100)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    store = Store(tmp_path, retention=60, size=1_000_000)
    rows = everything_after(store, 0)[1:]  # the first is the start
    assert [row.id for row in rows] == list(range(rows[0].id, rows[0].id + 400))
    for channel in {row.channel for row in rows}:
        assert [int(row.data) for row in rows if row.channel == channel] == list(range(100))
    store.close()


def test_old_messages_go_by_time_but_never_the_newest(store: Store, clock: Clock) -> None:
    start = store.last_id()
    for number in range(300):
        say(store, number)
    clock.now += 61
    last = say(store, "last")
    assert store.after(start) == [Row(last, 0, "news", "last")]
    clock.now += 1000
    assert store.last_id() == last
    assert say(store, "next") == last + 1


def test_old_messages_go_by_size(tmp_path: Path, clock: Clock) -> None:
    store = Store(tmp_path, retention=60, size=50_000, clock=clock)
    for _ in range(1000):
        say(store, '"' + "x" * 100 + '"')
    kept = sum(len(row.data) + len(row.channel) + 64 for row in everything_after(store, 0))
    assert 49_000 < kept < 50_000 + 200 * 170
    store.close()


def test_a_clock_that_goes_back_makes_no_hole(store: Store, clock: Clock) -> None:
    start = store.last_id()
    for number in range(500):
        clock.now += -40 if number % 2 else 40
        say(store, number)
        if number % 50 == 0:
            clock.now += 30
    ids = [row.id for row in everything_after(store, start)]
    assert ids == list(range(ids[0], ids[0] + len(ids)))


def test_a_replay_is_complete_or_says_that_it_is_not(store: Store, clock: Clock) -> None:
    start = store.last_id()
    for number in range(10):
        say(store, number)
        say(store, number, "other")
    replay = store.replay("news", start, limit=10, size=1000)
    assert [row.data for row in replay.rows] == [str(n) for n in range(10)]
    assert (replay.missed, replay.last_id) == (False, start + 20)
    assert store.replay("news", start + 20, limit=10, size=1000).missed is False
    assert store.replay("nothing", start, limit=10, size=1000).missed is False
    assert store.replay("news", start, limit=9, size=1000).missed
    assert store.replay("news", start, limit=10, size=9).missed
    assert store.replay("news", start, limit=10, size=10 * (1 + 4 + 64)).missed is False
    assert store.replay("news", start, limit=10, size=10 * (1 + 4 + 64) - 1).missed
    assert store.replay("news", start - 2, limit=10, size=1000).missed
    assert store.replay("news", start + 21, limit=10, size=1000).missed
    clock.now += 61
    say(store, "late")
    say(store, "later")
    assert store.replay("news", start + 19, limit=10, size=1000).missed
    assert not store.replay("news", start + 20, limit=10, size=1000).missed


def test_a_replay_is_measured_in_bytes(store: Store) -> None:
    start = store.last_id()
    say(store, '"' + "中" * 100 + '"')
    assert store.replay("news", start, limit=10, size=370).missed is False
    assert store.replay("news", start, limit=10, size=369).missed


def test_a_new_boot_of_the_machine_begins_a_new_log(
    store: Store, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = say(store, "before")
    store.close()
    clock.now -= 100_000  # and its clock is wrong at first
    monkeypatch.setattr(store_module, "_boot", lambda: "another")
    again = Store(tmp_path, retention=60, size=1_000_000, clock=clock)
    assert again.last_id() > last
    assert again.replay("news", last, limit=10, size=1000).missed
    first = again.last_id()
    again.close()
    same = Store(tmp_path, retention=60, size=1_000_000, clock=clock)
    assert same.last_id() == first
    same.close()


def test_a_damaged_file_is_put_aside(tmp_path: Path) -> None:
    (tmp_path / "cable.sqlite3").write_bytes(b"not a database, " * 1000)
    store = Store(tmp_path, retention=60, size=1_000_000)
    say(store, 1)
    assert [path.name for path in tmp_path.glob("*damaged*")] != []
    store.close()


#: Overwrites the file and its log, in a process of its own: opening them here would be refused.
DAMAGE = """
import os, sys
for path in sys.argv[1:]:
    with open(path, "r+b") as file:
        file.write(b"damaged " * (os.path.getsize(path) // 8))
"""


def damage(folder: Path) -> None:
    files = [str(folder / f"cable.sqlite3{suffix}") for suffix in ("", "-wal")]
    subprocess.run([sys.executable, "-c", DAMAGE, *files], check=True)


def forget_pages(store: Store) -> None:
    """Have the store read from the file again, as after another process's write."""
    for slot in store._slots:
        if slot.connection is not None:
            slot.connection.execute("PRAGMA shrink_memory")


def test_a_file_that_is_damaged_while_it_is_open_is_put_aside(tmp_path: Path) -> None:
    store = Store(tmp_path, retention=60, size=1_000_000)
    last = say(store, 1)
    store.after(last)
    damage(tmp_path)
    forget_pages(store)
    with pytest.raises(driver.DatabaseError):
        store.after(last)
    number = say(store, 2)
    assert number > last
    assert store.after(last)[-1] == Row(number, 0, "news", "2")
    assert len([*tmp_path.glob("*damaged*")]) == 1
    store.close()


def test_a_broadcast_goes_to_the_new_file_when_it_meets_the_damage(tmp_path: Path) -> None:
    store = Store(tmp_path, retention=60, size=1_000_000)
    last = say(store, 1)
    damage(tmp_path)
    forget_pages(store)
    number = say(store, 2)
    assert number > last
    assert store.after(number - 1) == [Row(number, 0, "news", "2")]
    store.close()


def test_a_new_file_of_another_process_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "LOOK", 0.0)
    store = Store(tmp_path, retention=60, size=1_000_000)
    last = say(store, 1)
    assert store.replay("news", last, limit=10, size=1000).missed is False
    damage(tmp_path)
    other = Store(tmp_path, retention=60, size=1_000_000)
    number = say(other, "2")
    assert store.after(last)[-1] == Row(number, 0, "news", "2")
    assert store.replay("news", last, limit=10, size=1000).missed
    assert say(store, 3) == number + 1
    assert other.after(number) == [Row(number + 1, 0, "news", "3")]
    store.close()
    other.close()


def test_a_replay_does_not_hold_up_who_follows(store: Store) -> None:
    first = say(store, 1)
    with store._reading():  # as long as a replay takes
        assert store.after(first - 1) == [Row(first, 0, "news", "1")]


def test_a_child_process_writes_on_with_connections_of_its_own(store: Store) -> None:
    first = say(store, "parent")
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            store.after_fork()
            say(store, '"child"')
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    assert [row.data for row in store.after(first)] == ['"child"']
    assert say(store, "parent") == first + 2


def test_presence_counts_users_once_and_anonymous_connections_each(
    store: Store, tmp_path: Path
) -> None:
    def describe(channel: str, presence: Presence) -> str:
        return f"{presence.count}"

    here = Life(tmp_path / "run", "cable")
    there = Life(tmp_path / "run", "cable")
    start = store.last_id()
    store.change_presence(here.name, {"news": {"": 2, "ann": 3}}, describe)
    store.change_presence(there.name, {"news": {"": 1, "ann": 1, "bob": 1}}, describe)
    assert store.present("news") == Presence(5, ("ann", "bob"))
    store.change_presence(here.name, {"news": {"": 0}}, describe)
    assert [row.data for row in store.after(start)] == ["3", "5", "3"]
    there.close()
    assert store.present("news") == Presence(1, ("ann",))
    store.forget_processes([there.name], describe)
    assert store.processes() == [here.name]
    assert store.after(start)[-1].data == "1"
    here.close()

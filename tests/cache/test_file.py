"""Never in the way: whatever happens to the file is a miss and a line in the log."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flask_litestack.cache import SQLiteCache, access, backend, file
from flask_litestack.errors import LitestackError, LiveFileError, StoreError
from flask_litestack.sqlite import driver
from tests.disks import fill, small_disk

from .clock import Clock

Make = Callable[..., SQLiteCache]


def foreign(path: Path) -> driver.Connection:
    """A connection as another program's."""
    return driver.module.connect(path, isolation_level=None)


def other_process(code: str, folder: Path) -> None:
    """Do something to the file where it has no locks to lose."""
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, timeout=60)


DAMAGE = """
import sys, os
path = os.path.join(sys.argv[1], "cache.sqlite3")
with open(path, "r+b") as file:
    {}
for suffix in ("-wal",):
    if os.path.exists(path + suffix):
        os.truncate(path + suffix, 0)
"""


@pytest.mark.parametrize(
    "damage",
    [
        "file.write(b'garbage' * 1000)",
        "file.truncate(5000)",
        "file.truncate(0)",
        "file.seek(4096); file.write(os.urandom(100_000))",
    ],
)
@pytest.mark.parametrize("live", [True, False])
def test_a_corrupt_file_is_set_aside(
    make: Make, tmp_path: Path, clock: Clock, damage: str, live: bool
) -> None:
    cache = make()
    for i in range(3000):
        cache.set(f"key-{i}", "x" * 100)
    if not live:
        cache.close()
    other_process(DAMAGE.format(damage), tmp_path)
    for i in range(3000):
        assert cache.get(f"key-{i}") in ("x" * 100, None)
        cache.set(f"key-{i}", "y" * 100)
    for _ in range(3):  # what was found corrupt is replaced, and works
        clock.advance(2)
        cache.set("key", 1)
    assert cache.get("key") == 1
    assert all(cache.get(f"key-{i}") in ("y" * 100, None) for i in range(3000))


def test_a_file_of_something_else_is_set_aside_and_kept(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = make()
    cache.set("key", 0)
    cache.close()
    letter = "import pathlib, sys; path = pathlib.Path(sys.argv[1], 'cache.sqlite3'); "
    other_process(letter + "path.write_text('a letter to my mother ' * 100)", tmp_path)
    assert cache.set("key", 1)
    assert cache.get("key") == 1
    assert "mother" in (tmp_path / "cache.sqlite3.corrupt").read_text()
    assert [record.levelname for record in caplog.records] == ["WARNING"]


@pytest.mark.parametrize("suffixes", [("",), ("", "-wal", "-shm"), ("-wal", "-shm")])
def test_a_file_deleted_while_open_is_noticed_within_a_second(
    make: Make, tmp_path: Path, clock: Clock, suffixes: tuple[str, ...]
) -> None:
    one, other = make(), make()
    one.set("key", "old")
    other.get("key")
    for suffix in suffixes:
        (tmp_path / f"cache.sqlite3{suffix}").unlink()
    clock.advance(1)
    assert one.get("key") in ("old", None)
    for _ in range(2):
        one.set("key", "new")
        clock.advance(1)
    if "" in suffixes:
        assert one.get("key") == other.get("key") == "new"
    one.delete("key")
    clock.advance(1)
    assert one.get("key") is None


def test_a_file_of_a_newer_release_is_left_alone(
    make: Make, tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    first = make()
    first.set("key", 1)
    first.close()
    with foreign(tmp_path / "cache.sqlite3") as connection:
        connection.execute(f"PRAGMA user_version = {file.VERSION + 1}")
    connection.close()
    cache = make()
    assert cache.get("key") is None
    assert not cache.set("key", 2)
    assert cache.get_or_set("key", lambda: 3) == 3
    assert "newer release" in caplog.text
    assert len(caplog.records) == 1
    with foreign(tmp_path / "cache.sqlite3") as connection:
        assert connection.execute("SELECT count(*) FROM entries").fetchone() == (1,)
    connection.close()
    cache.delete("key")  # what stays would be stale for the newer release
    clock.advance(2)
    assert cache.set("key", 4)


def test_a_file_of_an_older_layout_is_replaced(make: Make, tmp_path: Path) -> None:
    connection = foreign(tmp_path / "cache.sqlite3")
    connection.execute("CREATE TABLE something (x)")
    connection.close()
    cache = make()
    assert cache.set("key", 1)
    assert cache.get("key") == 1


@pytest.mark.parametrize(
    ("statement", "of_another_file"),
    [("SELECT * FROM entries", True), ("SELECT written", True), ("BEGIN; BEGIN", False)],
)
def test_a_mistake_of_ours_is_not_taken_for_a_corrupt_file(
    statement: str, of_another_file: bool
) -> None:
    connection = driver.module.connect(":memory:", isolation_level=None)
    with pytest.raises(driver.OperationalError) as caught:
        connection.executescript(statement)
    connection.close()
    assert file.error_code(caught.value) == 1
    assert file.is_corrupt(caught.value) is of_another_file


def test_a_reboot_empties_the_cache(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not synced, so a power cut may have torn it, and its clock starts anew."""
    cache = make()
    cache.set("key", 1)
    cache.close()
    assert cache.get("key") == 1
    cache.close()
    monkeypatch.setattr(file, "boot", lambda: "another boot")
    assert cache.get("key") is None
    cache.set("key", 2)
    cache.close()
    assert cache.get("key") == 2


def test_it_works_where_the_kernel_does_not_name_the_boot(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Elsewhere(type(Path())):  # type: ignore[misc]
        def read_text(self, *args: object, **options: object) -> str:
            raise FileNotFoundError

    monkeypatch.setattr(file, "Path", Elsewhere)
    cache, other = make(), make()
    assert cache.set("key", 1)
    assert other.get("key") == 1
    cache.close()
    assert cache.get("key") == 1


def test_statistics_of_a_cache_that_cannot_be_opened_are_an_error_of_ours(
    make: Make, tmp_path: Path
) -> None:
    (tmp_path / "run" / "cache.recency").mkdir(parents=True)
    cache = make()
    assert cache.get("key") is None
    with pytest.raises(StoreError, match="cannot be read"):
        cache.stats()
    with pytest.raises(StoreError, match="cannot be read"):
        make().stats()


def test_a_locked_file_is_a_miss_for_sets_and_none_for_gets(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(access, "WAIT", 0.05)
    cache = make()
    cache.set("key", 1)
    connection = foreign(tmp_path / "cache.sqlite3")
    connection.execute("BEGIN IMMEDIATE")
    assert cache.get("key") == 1
    assert not cache.set("key", 2)
    assert cache.set_many({"a": 1}) == []
    assert not cache.add("other", 2)
    assert cache.inc("key") is None
    assert cache.get_or_set("other", lambda: 3) == 3
    assert len(caplog.records) == 1
    connection.execute("ROLLBACK")
    connection.close()
    assert cache.set("key", 2)


def test_a_delete_that_finds_the_file_locked_for_long_throws_it_away(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    monkeypatch.setattr(access, "WAIT", 0.05)
    monkeypatch.setattr(backend, "STUBBORN", 0.1)
    cache, other = make(), make()
    cache.set("key", "old")
    assert other.get("key") == "old"
    connection = foreign(tmp_path / "cache.sqlite3")
    connection.execute("BEGIN IMMEDIATE")
    cache.delete("key")
    assert cache.get("key") is None
    clock.advance(1)
    assert other.get("key") is None
    connection.close()


def test_a_value_computed_before_the_file_was_replaced_is_refused(make: Make, clock: Clock) -> None:
    """The new file does not know what was deleted in the old one."""
    reader, writer = make(), make()
    reader.set("other", 1)
    assert reader.get("post") is None
    writer.delete("post")
    writer.clear_all()
    clock.advance(1)
    assert not reader.set("post", "old")
    assert reader.get("post") is None
    assert reader.set("post", "new")


def test_clearing_all_is_noticed_at_once_and_quietly(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    one, other = make(), make()
    for i in range(1000):
        one.set(f"key-{i}", i)
    assert other.get_many("key-0", "key-999") == [0, 999]
    one.clear_all()
    assert [other.get(f"key-{i}") for i in range(1000)] == [None] * 1000
    assert other.set("key", 1)
    assert one.get("key") == 1
    assert caplog.records == []


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts descriptors in /proc")
@pytest.mark.parametrize("replace", ["clear", "delete", "corrupt"])
def test_a_file_that_is_replaced_leaves_no_descriptors(
    make: Make, tmp_path: Path, clock: Clock, replace: str
) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    cache, other = make(), make()
    counts = []
    for i in range(12):
        assert cache.set("key", i)
        with cache._access.taken(clock()) as used:
            assert cache.get("key") == i
            if replace == "clear":
                other.clear_all()
            elif replace == "delete":
                for suffix in ("", "-wal", "-shm"):
                    (tmp_path / f"cache.sqlite3{suffix}").unlink()
            else:
                cache._access.file.replace(used, "for a test")
        clock.advance(2)
        assert other.get("key") in (None, i)
        counts.append(descriptors())
    assert counts[-1] <= counts[1]
    assert cache.set("key", "new")
    clock.advance(2)
    assert other.get("key") == "new"


def test_a_thread_that_finds_the_old_file_corrupt_leaves_the_new_one_alone(
    make: Make, tmp_path: Path
) -> None:
    cache, other = make(), make()
    cache.set("key", 1)
    with cache._access.taken(cache._clock()) as old:
        other.clear_all()
        assert cache.set("key", 2)  # another thread has gone on to the new file meanwhile
        assert not cache._access.file.replace(old, "disk I/O error")
    assert cache.get("key") == other.get("key") == 2
    assert not (tmp_path / "cache.sqlite3.corrupt").exists()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 4 MiB."""
    with small_disk(tmp_path, 4 << 20) as disk:
        yield disk


def test_a_full_disk_is_a_miss_and_never_stale(disk: Path, clock: Clock) -> None:
    cache = SQLiteCache(disk / "data", size=64 << 20, clock=clock)
    cache.set("key", "old")
    ballast = disk / "ballast"
    ballast.touch()
    results = []
    for i in range(200):
        results.append(cache.set(f"key-{i}", os.urandom(50_000)))
    assert not all(results)
    fill(ballast)
    cache.delete("key")
    assert cache.get("key") is None
    assert not cache.set("other", os.urandom(2_000_000))
    for i in range(200):
        cache.get(f"key-{i}")
    ballast.unlink()
    clock.advance(2)
    assert cache.set("key", "new")
    assert cache.get("key") == "new"
    cache.close()


def test_a_full_disk_at_the_first_use_is_a_miss(disk: Path, clock: Clock) -> None:
    ballast = disk / "ballast"
    fill(ballast)
    cache = SQLiteCache(disk / "data", size=2 << 20, clock=clock)
    assert cache.get("key") is None
    assert not cache.set("key", 1)
    assert cache.get_or_set("key", lambda: 2) == 2
    cache.delete("key")
    assert cache.clear() in (True, False)
    ballast.unlink()
    clock.advance(2)
    assert cache.set("key", 3)
    assert cache.get("key") == 3
    cache.close()


def test_a_folder_that_cannot_be_made_is_a_miss(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "data").write_text("a file")
    cache = SQLiteCache(tmp_path / "data")
    assert cache.get("key") is None
    assert not cache.set("key", 1)
    assert cache.get_many("a", "b") == [None, None]
    assert cache.get_or_set("key", lambda: 2) == 2
    assert cache.inc("n") is None
    assert not cache.delete("key")
    assert "is a file, not a folder" in caplog.text
    with pytest.raises(LitestackError):
        cache.stats()


def test_a_child_goes_on_with_connections_of_its_own(make: Make) -> None:
    cache = make()
    cache.set("key", 1)
    inherited = cache._access.pool.all[0]
    child = os.fork()
    if child == 0:
        ok = (
            cache.get("key") == 1
            and cache.set("key", 2)
            and inherited not in cache._access.pool.all
            and cache.get_or_set("new", lambda: 5) == 5
        )
        os._exit(0 if ok else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert cache.get("key") == 2
    assert cache.set("key", 3)
    other = make()
    assert other.get("key") == 3


def test_a_child_that_exits_in_order_leaves_the_parents_file_alone(tmp_path: Path) -> None:
    """Closing an inherited connection would delete the -wal file that the parent writes to."""
    code = """
import os, sys
from pathlib import Path
from flask_litestack.cache import SQLiteCache
cache = SQLiteCache(Path(sys.argv[1]))
cache.set("key", 1)
if os.fork() == 0:
    sys.exit()  # the interpreter ends in order: everything is collected
os.wait()
assert os.path.exists(cache._access.file.path.with_name("cache.sqlite3-wal"))
cache.set("key", 2)
other = SQLiteCache(Path(sys.argv[1]))
assert other.get("key") == 2
"""
    other_process(code, tmp_path)


def test_a_process_that_ends_with_an_old_file_open_leaves_the_new_one_alone(
    make: Make, tmp_path: Path
) -> None:
    code = """
import sys
from pathlib import Path
from flask_litestack.cache import SQLiteCache
folder = Path(sys.argv[1])
cache = SQLiteCache(folder)
cache.set("key", 1)
for suffix in ("", "-wal", "-shm"):
    (folder / f"cache.sqlite3{suffix}").unlink()
new = SQLiteCache(folder)
new.set("key", 2)
new._access.file.path.with_name("done").touch()
"""
    other_process(code, tmp_path)
    cache = make()
    assert (tmp_path / "cache.sqlite3-wal").stat().st_size > 0
    assert cache.get("key") == 2


def test_the_guard_watches_the_file(make: Make, tmp_path: Path) -> None:
    cache = make()
    cache.set("key", 1)
    with pytest.raises(LiveFileError):
        (tmp_path / "cache.sqlite3").read_bytes()

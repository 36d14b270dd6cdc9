from __future__ import annotations

import os
import resource
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from flask_litestack.process import wakeup
from flask_litestack.process.wakeup import Mailbox, wake


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


def test_a_wake_up_ends_the_wait(run: Path) -> None:
    mailbox = Mailbox(run, "jobs")
    timer = threading.Timer(0.05, wake, (run, "jobs"))
    timer.start()
    start = time.monotonic()
    assert mailbox.wait(5) is True
    assert time.monotonic() - start < 1
    timer.join()
    mailbox.close()


def test_nobody_calls(run: Path) -> None:
    mailbox = Mailbox(run, "jobs")
    assert mailbox.wait(0.01) is False
    mailbox.close()


def test_without_a_descriptor_nobody_is_woken_and_nothing_is_raised(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mailbox = Mailbox(run, "jobs")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    try:
        with suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        assert wake(run, "jobs") == 0
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert "cannot wake the listeners to jobs: [Errno 24]" in caplog.text
    assert wake(run, "jobs") == 1
    mailbox.close()


def test_several_wake_ups_are_one(run: Path) -> None:
    mailbox = Mailbox(run, "jobs")
    for _ in range(3):
        assert wake(run, "jobs") == 1
    assert mailbox.wait(0) is True
    assert mailbox.wait(0) is False
    mailbox.close()


def test_a_full_queue_counts_as_woken_and_never_blocks(run: Path) -> None:
    mailbox = Mailbox(run, "jobs")
    assert [wake(run, "jobs") for _ in range(2000)] == [1] * 2000
    assert mailbox.wait(0) is True
    mailbox.close()


def test_only_the_kind_that_is_meant(run: Path) -> None:
    jobs, cable = Mailbox(run, "jobs"), Mailbox(run, "cable")
    assert wake(run, "jobs") == 1
    assert cable.wait(0) is False
    assert jobs.wait(0) is True
    jobs.close()
    cable.close()


def test_a_limit_wakes_no_more_than_that_and_not_always_the_same(run: Path) -> None:
    mailboxes = [Mailbox(run, "jobs") for _ in range(3)]
    reached = set()
    for _ in range(100):
        assert wake(run, "jobs", limit=1) == 1
        awake = [i for i, mailbox in enumerate(mailboxes) if mailbox.wait(0)]
        assert len(awake) == 1
        reached.update(awake)
    assert reached == {0, 1, 2}
    for mailbox in mailboxes:
        mailbox.close()


def test_who_wakes_the_others_is_left_out(run: Path) -> None:
    mine, other = Mailbox(run, "jobs"), Mailbox(run, "jobs")
    assert wake(run, "jobs", besides=mine) == 1
    assert (mine.wait(0), other.wait(0)) == (False, True)
    mine.close()
    other.close()


def test_a_hidden_mailbox_is_left_in_peace(run: Path) -> None:
    mailbox = Mailbox(run, "jobs")
    mailbox.hide()
    mailbox.hide()
    assert wake(run, "jobs") == 0
    mailbox.show()
    assert wake(run, "jobs") == 1
    assert mailbox.wait(0) is True
    mailbox.hide()
    mailbox.close()
    assert os.listdir(run) == []


def test_no_folder_nobody_to_wake(run: Path) -> None:
    assert wake(run, "jobs") == 0


def test_close_leaves_nothing_behind(run: Path) -> None:
    mailbox = Mailbox(run, "jobs")
    assert len(os.listdir(run)) == 1
    mailbox.close()
    mailbox.close()
    assert os.listdir(run) == []


def test_the_folder_is_private(run: Path) -> None:
    Mailbox(run, "jobs").close()
    assert run.stat().st_mode & 0o777 == 0o700


def test_a_path_too_long_for_a_socket_address(tmp_path: Path) -> None:
    run = tmp_path / ("d" * 120) / ("e" * 120) / "run"
    mailbox = Mailbox(run, "jobs")
    descriptors = len(os.listdir("/proc/self/fd"))
    assert wake(run, "jobs") == 1
    assert mailbox.wait(0) is True
    assert len(os.listdir("/proc/self/fd")) <= descriptors + 1  # the sender, made once
    mailbox.close()
    assert os.listdir(run) == []


def _killed(run: Path, *, hidden: bool) -> None:
    """Leave the socket of a process that was killed."""
    ready, said = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            mailbox = Mailbox(run, "jobs")
            if hidden:
                mailbox.hide()
            os.write(said, b"1")
            time.sleep(60)
        finally:
            os._exit(1)
    os.read(ready, 1)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(ready)
    os.close(said)


def test_a_dead_process_is_passed_over_and_its_socket_removed(run: Path) -> None:
    _killed(run, hidden=False)
    mailbox = Mailbox(run, "jobs")
    assert len(os.listdir(run)) == 2
    for _ in range(10):
        wake(run, "jobs", limit=1)
    assert mailbox.wait(0) is True
    assert wake(run, "jobs") == 1
    assert len(os.listdir(run)) == 1
    mailbox.close()


def test_the_next_mailbox_removes_what_a_process_killed_while_busy_left(run: Path) -> None:
    _killed(run, hidden=True)
    busy = Mailbox(run, "jobs")
    busy.hide()
    other = Mailbox(run, "jobs")
    assert len(os.listdir(run)) == 2
    busy.show()
    assert wake(run, "jobs") == 2
    busy.close()
    other.close()


def test_a_forked_child_does_not_swallow_the_wake_ups_of_a_dead_parent(run: Path) -> None:
    ready, said = os.pipe()
    worker = os.fork()
    if worker == 0:
        Mailbox(run, "jobs")
        mailbox = Mailbox(run, "jobs")
        child = os.fork()
        if child == 0:
            os.write(said, b"%d\n" % os.getpid())
            time.sleep(60)
            os._exit(0)
        mailbox.wait(60)
        os._exit(0)
    child = int(os.read(ready, 20))
    os.kill(worker, signal.SIGKILL)
    os.waitpid(worker, 0)
    assert wake(run, "jobs") == 0
    os.kill(child, signal.SIGKILL)
    os.close(ready)
    os.close(said)


def test_a_forked_child_does_not_take_the_socket_of_its_parent_away(run: Path) -> None:
    mailbox = Mailbox(run, "jobs")
    pid = os.fork()
    if pid == 0:
        mailbox.close()
        os._exit(0)
    os.waitpid(pid, 0)
    assert wake(run, "jobs") == 1
    assert mailbox.wait(0) is True
    mailbox.close()


def test_without_unix_sockets_the_owner_looks_by_itself(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wakeup, "_HAS_UNIX_SOCKETS", False)
    mailbox = Mailbox(run, "jobs")
    mailbox.hide()
    mailbox.show()
    start = time.monotonic()
    assert mailbox.wait(5) is True
    assert time.monotonic() - start < 1
    assert wake(run, "jobs") == 0
    mailbox.close()


def test_a_kind_with_a_dash_is_refused(run: Path) -> None:
    with pytest.raises(ValueError, match="no '-'"):
        Mailbox(run, "jobs-web")

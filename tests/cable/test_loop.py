from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from flask_litestack.cable.loop import Loop


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


def test_a_call_of_another_thread_ends_the_wait(loop: Loop) -> None:
    got: list[int] = []
    threading.Timer(0.05, loop.call, (lambda: got.append(1),)).start()
    before = time.monotonic()
    for key, _ in loop.wait(10):
        key.data()
    assert time.monotonic() - before < 5
    assert loop.called
    loop.run_calls()
    assert got == [1]
    assert not loop.called


def test_a_call_that_fails_keeps_no_other_from_being_run(
    loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    got: list[int] = []
    loop.call(lambda: 1 / 0)
    loop.call(lambda: got.append(2))
    loop.run_calls()
    assert got == [2]
    assert "failed at a call" in caplog.text


def test_timers_run_in_the_order_of_their_times_and_regular_ones_again(loop: Loop) -> None:
    got: list[str] = []
    loop.later(60, lambda: got.append("much later"))
    loop.later(0.02, lambda: got.append("later"))
    loop.later(0.0, lambda: got.append("now"))
    loop.every(0.04, lambda: got.append("again"))
    while got.count("again") < 2:
        time.sleep(loop.until_next_timer())
        loop.run_timers()
    assert got == ["now", "later", "again", "again"]


def test_a_descriptor_is_watched_for_what_was_said_last(loop: Loop) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.send(b"x")
        loop.watch(ours, "ours")
        assert [key.data for key, _ in loop.wait(0)] == ["ours"]
        loop.watch(ours, "ours", 0, before=1)
        assert loop.wait(0) == []


def test_a_closed_loop_leaves_nothing_open() -> None:
    before = len(os.listdir("/proc/self/fd"))
    Loop().close()
    assert len(os.listdir("/proc/self/fd")) == before

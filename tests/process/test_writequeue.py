"""First come, first served, with a deadline for each."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from flask_litestack.errors import LockTimeout, SelfDeadlock
from flask_litestack.process import activity
from flask_litestack.process.writequeue import Hold, WriteQueue
from tests.interrupts import Stop, interrupt_often, stop


@pytest.fixture
def queue(tmp_path: Path) -> WriteQueue:
    return WriteQueue(tmp_path / "data.sqlite3")


def soon(seconds: float = 5.0) -> float:
    return time.monotonic() + seconds


def take(queue: WriteQueue, deadline: float) -> Hold:
    hold = Hold()
    queue.acquire(hold, deadline)
    return hold


def wait_until_waiting(queue: WriteQueue, number: int) -> None:
    while len(queue._waiting) < number:
        time.sleep(0.001)


def test_threads_are_served_in_the_order_of_their_arrival(queue: WriteQueue) -> None:
    order: list[int] = []

    def take_and_note(number: int) -> None:
        hold = take(queue, soon())
        order.append(number)
        queue.release(hold)

    first = take(queue, soon())
    threads = []
    for number in range(8):
        thread = threading.Thread(target=take_and_note, args=(number,))
        thread.start()
        threads.append(thread)
        wait_until_waiting(queue, number + 1)
    queue.release(first)
    for thread in threads:
        thread.join()
    assert order == list(range(8))


def test_one_at_a_time(queue: WriteQueue) -> None:
    inside = 0
    most = 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(200):
            hold = take(queue, soon(30))
            inside += 1
            most = max(most, inside)
            time.sleep(0)
            inside -= 1
            queue.release(hold)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_a_waiter_gives_up_at_its_deadline_and_the_queue_goes_on(queue: WriteQueue) -> None:
    first = take(queue, soon())
    queue.begun(first)
    outcome: list[object] = []

    def impatient() -> None:
        try:
            take(queue, soon(0.05))
        except LockTimeout as error:
            outcome.append(error)

    def patient() -> None:
        hold: Hold = take(queue, soon())
        outcome.append("served")
        queue.release(hold)

    one = threading.Thread(target=impatient)
    one.start()
    wait_until_waiting(queue, 1)
    two = threading.Thread(target=patient)
    two.start()
    one.join()
    assert f"process {os.getpid()}" in str(outcome[0])
    queue.release(first)
    two.join()
    assert outcome[1] == "served"


def test_a_thread_is_not_left_to_wait_for_itself(queue: WriteQueue) -> None:
    hold = take(queue, soon())
    with pytest.raises(SelfDeadlock, match="already writes"):
        take(queue, soon())
    queue.release(hold)
    queue.release(take(queue, soon()))


def test_an_interrupted_waiter_leaves_the_line(queue: WriteQueue) -> None:
    first = take(queue, soon())
    outcome: list[str] = []

    def wait() -> None:
        try:
            take(queue, soon())
        except Stop:
            outcome.append("stopped")

    def wait_patiently() -> None:
        queue.release(take(queue, soon()))
        outcome.append("served")

    one, two = threading.Thread(target=wait), threading.Thread(target=wait_patiently)
    one.start()
    wait_until_waiting(queue, 1)
    two.start()
    wait_until_waiting(queue, 2)
    stop(one)
    queue.release(first)  # to the one that is stopped, who is asleep until now
    one.join()
    two.join()
    assert sorted(outcome) == ["served", "stopped"]
    queue.release(take(queue, soon()))


def test_a_signal_that_interrupts_the_wait_leaves_the_line(queue: WriteQueue) -> None:
    held, end = threading.Event(), threading.Event()

    def hold() -> None:
        first = take(queue, soon())
        held.set()
        end.wait()
        queue.release(first)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    threading.Timer(0.05, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        take(queue, soon())
    assert not queue._waiting
    end.set()
    thread.join()
    queue.release(take(queue, soon()))


def test_a_turn_is_given_back_once(queue: WriteQueue) -> None:
    first = take(queue, soon())
    queue.release(first)
    second = take(queue, soon())
    queue.release(first)
    queue.release(Hold())
    with pytest.raises(SelfDeadlock):
        take(queue, soon())
    queue.release(second)


def test_interrupts_at_any_moment_lose_no_turn(queue: WriteQueue) -> None:
    local = threading.local()

    def work() -> None:
        local.hold = Hold()
        try:
            queue.acquire(local.hold, soon(30))
        finally:
            queue.release(local.hold)

    # The release may have been interrupted, too.
    interrupt_often(work, lambda: queue.release(local.hold), threads=3, times=300)
    queue.release(take(queue, soon(1)))


def test_the_holder_is_known_to_every_process(tmp_path: Path) -> None:
    path = tmp_path / "data.sqlite3"
    queue = WriteQueue(path)
    assert queue.holder() is None
    token = activity.current.set("job 17 send_mail")
    hold = take(queue, soon())
    queue.begun(hold)
    activity.current.reset(token)
    holder = WriteQueue(path).holder()
    assert holder is not None
    assert (holder.pid, holder.activity, holder.stopped) == (os.getpid(), "job 17 send_mail", False)
    queue.release(hold)
    assert queue.holder() is None


HOLD = """
import sys, time
from pathlib import Path
from flask_litestack.process.writequeue import Hold, WriteQueue
queue = WriteQueue(Path(sys.argv[1]))
hold = Hold()
queue.acquire(hold, time.monotonic() + 5)
queue.begun(hold)
print("held", flush=True)
time.sleep(60)
"""


def test_a_stopped_holder_is_called_stopped_and_a_dead_one_is_none(tmp_path: Path) -> None:
    path = tmp_path / "data.sqlite3"
    queue = WriteQueue(path)
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        other.send_signal(signal.SIGSTOP)
        while (holder := queue.holder()) is None or not holder.stopped:
            time.sleep(0.01)
        assert "which is stopped" in str(queue.timeout(5.0))
        other.kill()
        other.wait()
        assert queue.holder() is None
        assert "not one of this stack's" in str(queue.timeout(5.0))

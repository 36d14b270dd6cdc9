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


@pytest.fixture
def queue(tmp_path: Path) -> WriteQueue:
    return WriteQueue(tmp_path / "data.sqlite3")


def soon(seconds: float = 5.0) -> float:
    return time.monotonic() + seconds


def wait_until_waiting(queue: WriteQueue, number: int) -> None:
    while len(queue._waiting) < number:
        time.sleep(0.001)


def test_threads_are_served_in_the_order_of_their_arrival(queue: WriteQueue) -> None:
    order: list[int] = []

    def take(number: int) -> None:
        hold = queue.acquire(soon())
        order.append(number)
        queue.release(hold)

    first = queue.acquire(soon())
    threads = []
    for number in range(8):
        thread = threading.Thread(target=take, args=(number,))
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
            hold = queue.acquire(soon(30))
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
    first = queue.acquire(soon())
    queue.begun(first)
    outcome: list[object] = []

    def impatient() -> None:
        try:
            queue.acquire(soon(0.05))
        except LockTimeout as error:
            outcome.append(error)

    def patient() -> None:
        hold: Hold = queue.acquire(soon())
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
    hold = queue.acquire(soon())
    with pytest.raises(SelfDeadlock, match="already writes"):
        queue.acquire(soon())
    queue.release(hold)
    queue.release(queue.acquire(soon()))


def test_the_holder_is_known_to_every_process(tmp_path: Path) -> None:
    path = tmp_path / "data.sqlite3"
    queue = WriteQueue(path)
    assert queue.holder() is None
    token = activity.current.set("job 17 send_mail")
    hold = queue.acquire(soon())
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
from flask_litestack.process.writequeue import WriteQueue
queue = WriteQueue(Path(sys.argv[1]))
queue.begun(queue.acquire(time.monotonic() + 5))
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

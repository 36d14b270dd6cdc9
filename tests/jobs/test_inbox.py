from __future__ import annotations

import threading
import time
from collections import Counter

import pytest

from flask_litestack.jobs.batch import BatchSize
from flask_litestack.jobs.claims import Claim
from flask_litestack.jobs.inbox import Inbox


def claims(count: int) -> list[Claim]:
    return [Claim(n, 0, "default", "task", "[]", 1, 0.0, None, 0, 0, 0) for n in range(count)]


def learned(seconds: float, busy: float) -> BatchSize:
    batch = BatchSize()
    for _ in range(200):
        batch.learn(seconds, busy)
    return batch


class Crew:
    """Threads that run jobs which take a given time, of which they compute a part."""

    def __init__(self, batch: BatchSize, threads: int, seconds: float) -> None:
        self.inbox = Inbox(batch)
        self.done: Counter[int] = Counter()
        self.order: list[int] = []
        self.seconds = seconds
        self.threads = [threading.Thread(target=self.work, args=(n,)) for n in range(threads)]
        for number, thread in enumerate(self.threads):
            self.inbox.add_thread(number)
            thread.start()
        while len(self.inbox._idle) < threads:
            time.sleep(0.001)

    def work(self, number: int) -> None:
        while (claim := self.inbox.get(number)) is not None:
            if self.seconds:
                time.sleep(self.seconds)
            self.order.append(claim.id)
            self.done[number] += 1

    def run(self, count: int) -> None:
        self.inbox.put(claims(count))
        self.inbox.call()
        deadline = time.monotonic() + 20
        while self.done.total() < count:
            assert time.monotonic() < deadline
            time.sleep(max(0.0, min(0.001, self.inbox.next_call() - time.monotonic())))
            self.inbox.call()

    def close(self) -> None:
        self.inbox.close()
        for thread in self.threads:
            thread.join(5)
            assert not thread.is_alive()


def test_one_thread_runs_short_jobs_that_compute_one_after_the_other() -> None:
    crew = Crew(learned(0.0004, 0.0003), threads=4, seconds=0)
    crew.run(1000)
    crew.close()
    assert sorted(crew.order) == list(range(1000))
    assert max(crew.done.values()) > 500  # another one is called if it is kept from running


def test_all_threads_run_jobs_that_wait_for_something() -> None:
    crew = Crew(learned(0.02, 0.0003), threads=4, seconds=0.02)
    crew.run(40)
    crew.close()
    assert len(crew.done) == 4


def test_the_next_thread_is_called_when_a_job_of_a_short_kind_takes_long() -> None:
    crew = Crew(learned(0.0004, 0.0003), threads=4, seconds=0.1)
    crew.run(4)
    crew.close()
    assert len(crew.done) == 4


def test_threads_that_give_way_leave_no_job_waiting() -> None:
    """Those at work rest when they are too many, all at the same time perhaps."""
    batch = learned(0.02, 0.0003)
    crew = Crew(batch, threads=4, seconds=0)
    for turn in range(300):
        if turn == 50:
            for _ in range(200):
                batch.learn(0.0004, 0.0003)
        crew.done.clear()
        crew.inbox.put(claims(20))
        crew.inbox.call()
        deadline = time.monotonic() + 5
        while crew.done.total() < 20:  # without another call
            assert time.monotonic() < deadline, (turn, crew.done, crew.inbox._idle)
            time.sleep(0)
    crew.close()


def test_what_waits_can_be_taken_back_and_threads_end_when_it_is_closed() -> None:
    inbox = Inbox(BatchSize())
    inbox.put(claims(3))
    inbox.call()
    assert [claim.id for claim in inbox.take_back()] == [0, 1, 2]
    assert len(inbox) == 0
    assert inbox.take_back() == []
    inbox.close()
    inbox.add_thread(0)
    assert inbox.get(0) is None


@pytest.mark.parametrize(
    ("seconds", "busy", "threads", "crowded"),
    [
        (0.0005, 0.0004, 1, True),
        (0.0020, 0.0004, 4, True),
        (0.0040, 0.0002, 4, False),
        (0.0200, 0.0200, 4, False),
    ],
    ids=["short", "short, in each other's way", "waiting", "long"],
)
def test_short_jobs_that_compute_crowd(
    seconds: float, busy: float, threads: int, crowded: bool
) -> None:
    assert learned(seconds, busy).is_crowded(threads) is crowded

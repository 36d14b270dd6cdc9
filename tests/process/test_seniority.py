from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from flask_litestack.process.seniority import FRESH, PATIENCE, SLOTS, Board

LATER = 1000.0


class Clock:
    """A clock that only sleeping moves, and what happens to others meanwhile."""

    def __init__(self) -> None:
        self.now = 100.0
        self.meanwhile: Callable[[], object] = lambda: None

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        meanwhile, self.meanwhile = self.meanwhile, lambda: None
        meanwhile()
        self.meanwhile = meanwhile


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make(tmp_path: Path, clock: Clock) -> Callable[..., Board]:
    """Make the board of another process."""
    return lambda: Board(tmp_path / "waiting", clock, clock.sleep)


def test_nobody_is_owed_the_lock_while_nobody_waits(make: Callable[..., Board]) -> None:
    assert not make().owed()


def test_who_has_waited_long_is_owed_the_lock_until_it_stops_waiting(
    make: Callable[..., Board], clock: Clock
) -> None:
    turns = make().turns(LATER)
    start = clock.now
    next(turns)
    assert not make().owed()
    while clock.now < start + 2 * PATIENCE:
        next(turns)
    assert make().owed()
    turns.close()
    clock.now += FRESH
    assert not make().owed()


def test_short_waits_are_left_to_chance(make: Callable[..., Board], clock: Clock) -> None:
    older = make().turns(LATER)
    next(older)
    clock.now += PATIENCE / 2
    before = clock.now
    next(make().turns(LATER))
    assert clock.now == before


def test_the_younger_lets_the_oldest_pass(make: Callable[..., Board], clock: Clock) -> None:
    older = make().turns(LATER)
    next(older)
    clock.now += PATIENCE
    next(older)

    def try_three_times() -> None:
        nonlocal tries
        tries += 1
        if tries < 3:
            next(older)
        elif tries == 3:
            older.close()  # it has got the lock

    tries = 0
    clock.meanwhile = try_three_times
    next(make().turns(LATER))
    assert tries == 3


def test_a_stopped_or_killed_process_holds_up_nobody(
    make: Callable[..., Board], clock: Clock
) -> None:
    older = make().turns(LATER)
    next(older)
    clock.now += PATIENCE
    next(older)
    stopped = clock.now
    next(make().turns(LATER))
    assert clock.now <= stopped + 1.5 * FRESH


def test_a_board_from_before_the_last_start_of_the_machine_counts_for_nothing(
    make: Callable[..., Board], clock: Clock, tmp_path: Path
) -> None:
    make()
    entries = [value for _ in range(SLOTS) for value in (7, clock.now - 1, clock.now + 9999)]
    board = struct.pack("<d", clock.now + 9999) + struct.pack("<" + "Qdd" * SLOTS, *entries)
    (tmp_path / "waiting").write_bytes(board)
    assert not make().owed()
    before = clock.now
    next(make().turns(LATER))
    assert clock.now == before


def test_more_processes_than_entries_all_get_their_turn(
    make: Callable[..., Board], clock: Clock
) -> None:
    crowd = [make().turns(LATER) for _ in range(SLOTS + 5)]
    for turns in crowd:
        next(turns)
    for turns in crowd:
        turns.close()
    before = clock.now
    next(make().turns(LATER))
    assert clock.now == before


def test_the_turns_end_with_a_last_one_at_the_deadline(
    make: Callable[..., Board], clock: Clock
) -> None:
    deadline = clock.now + 0.01
    times = [clock.now for _ in make().turns(deadline)]
    assert len(times) > 3
    assert times[-1] >= deadline > times[-2]
    assert len(list(make().turns(clock.now))) == 1


def test_it_is_crowded_as_long_as_another_process_waits(
    make: Callable[..., Board], clock: Clock
) -> None:
    board = make()
    assert not board.crowded()
    turns = make().turns(LATER)
    next(turns)
    assert board.crowded()
    turns.close()
    clock.now += 2 * FRESH
    assert not board.crowded()

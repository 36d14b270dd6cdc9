from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_litestack.errors import ConfigError
from flask_litestack.jobs.cron import Schedule

BERLIN = "Europe/Berlin"


def at(text: str, zone: str = BERLIN, fold: int = 0) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold).timestamp()


def slots(schedule: Schedule, start: float, count: int) -> list[float]:
    found = []
    for _ in range(count):
        start = schedule.after(start)
        found.append(start)
    return found


def test_the_time_zone_counts() -> None:
    daily = Schedule("0 4 * * *", BERLIN)
    assert daily.after(at("2026-07-01T00:00")) == at("2026-07-01T02:00", "UTC")
    assert daily.after(at("2026-01-01T00:00")) == at("2026-01-01T03:00", "UTC")


def test_an_hour_that_summer_time_skips_runs_once_after_the_gap() -> None:
    nightly = Schedule("30 2 * * *", BERLIN)
    assert slots(nightly, at("2026-03-28T12:00"), 2) == [
        at("2026-03-29T03:00"),
        at("2026-03-30T02:30"),
    ]


def test_an_hour_that_winter_time_repeats_runs_once() -> None:
    nightly = Schedule("30 2 * * *", BERLIN)
    assert slots(nightly, at("2026-10-24T12:00"), 2) == [
        at("2026-10-25T02:30"),
        at("2026-10-26T02:30"),
    ]


def test_every_ten_minutes_goes_on_through_the_repeated_hour() -> None:
    often = Schedule("*/10 * * * *", BERLIN)
    start = at("2026-10-25T02:00")
    assert slots(often, start, 12) == [start + 600 * n for n in range(1, 13)]


def test_nothing_is_due_before_its_time() -> None:
    hourly = Schedule("0 * * * *")
    done = at("2026-01-01T10:00", "UTC")
    assert hourly.due(done, done + 3599) is None
    assert hourly.due(done, done + 3600) == done + 3600


def test_of_many_missed_slots_the_latest_is_made_up_for() -> None:
    often = Schedule("* * * * *")
    done = at("2020-01-01T00:00", "UTC")
    assert often.due(done, at("2026-01-01T00:00", "UTC") + 30) == at("2026-01-01T00:00", "UTC")


def test_a_clock_that_goes_back_makes_no_slot_come_twice() -> None:
    hourly = Schedule("0 * * * *")
    done = at("2026-01-01T10:00", "UTC")
    assert hourly.due(done, done - 1800) is None
    assert hourly.due(done, done) is None


@pytest.mark.parametrize("expression", ["* * * * *", "*/7 3-5 * * 1", "30 2 * * *", "0 0 1 * *"])
@given(moment=st.floats(0, 4e9))
def test_latest_and_after_enclose_every_moment(expression: str, moment: float) -> None:
    schedule = Schedule(expression, BERLIN)
    latest = schedule.latest(moment)
    assert latest <= moment < schedule.after(moment)
    assert schedule.after(latest) == schedule.after(moment)


@pytest.mark.parametrize(
    "expression", ["30 2 * * *", "0,30 1,2 * * *", "15 1-3 * * *", "*/20 2 * * *"]
)
@pytest.mark.parametrize("change", ["2026-03-29T03:00", "2026-10-25T02:00"])
@given(seconds=st.floats(-3 * 3600, 3 * 3600))
def test_after_is_later_and_latest_is_earlier_where_the_clocks_change(
    expression: str, change: str, seconds: float
) -> None:
    schedule = Schedule(expression, BERLIN)
    moment = at(change) + seconds
    assert schedule.latest(moment) <= moment < schedule.after(moment)


@pytest.mark.parametrize("expression", ["", "every day", "61 * * * *", "* * *", "0 0 31 2 *"])
def test_what_is_not_a_cron_expression_is_refused(expression: str) -> None:
    with pytest.raises(ConfigError, match="cron = "):
        Schedule(expression)


def test_an_unknown_zone_is_refused() -> None:
    with pytest.raises(ConfigError, match="'Mars/Olympus' is not the name"):
        Schedule("* * * * *", "Mars/Olympus")

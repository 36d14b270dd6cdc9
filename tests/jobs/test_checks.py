from __future__ import annotations

import math
from datetime import timedelta
from typing import Any

import pytest

from flask_litestack.jobs.checks import is_whole, seconds


def test_a_length_of_time_is_a_number_of_seconds_or_a_timedelta() -> None:
    assert seconds("delay=", 2) == 2.0
    assert seconds("delay=", -0.5) == -0.5
    assert seconds("delay=", timedelta(minutes=1)) == 60.0


@pytest.mark.parametrize(
    "length", [math.inf, -math.inf, math.nan, 1.8e12, 10**400, timedelta.max, "3", None, True]
)
def test_what_is_none_is_refused_by_name(length: Any) -> None:
    with pytest.raises(ValueError, match=r"^delay= is a number of seconds"):
        seconds("delay=", length)


def test_a_whole_number_that_sqlite_can_store() -> None:
    assert all(is_whole(number, -5) for number in (-5, 0, 2**63 - 1))
    assert not any(is_whole(number, -5) for number in (-6, 2**63, 1.0, "1", None, True))

from __future__ import annotations

import math
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_litestack.jobs.retry import Discard, Retry, RetryPolicy


def middle(low: float, high: float) -> float:
    return (low + high) / 2


def test_delays_grow_up_to_the_longest() -> None:
    policy = RetryPolicy(first_delay=5, factor=4, max_delay=100)
    assert [policy.delay(n, middle) for n in (1, 2, 3, 4)] == [5, 20, 80, 100]


@given(st.integers(1, 100_000))
def test_a_delay_keeps_within_its_bounds(retry: int) -> None:
    assert 0 <= RetryPolicy(jitter=0.5).delay(retry) <= 3600 * 1.5


def test_jobs_that_failed_together_do_not_come_back_together() -> None:
    policy = RetryPolicy()
    assert len({policy.delay(1) for _ in range(20)}) > 15


def test_the_limit() -> None:
    policy = RetryPolicy(limit=2)
    assert [policy.allows(n, None) for n in (1, 2, 3)] == [True, True, False]
    assert policy.allows(3, 3)
    assert not policy.allows(1, 0)
    assert RetryPolicy(limit=None).allows(10**9, None)


def test_rules_per_exception() -> None:
    policy = RetryPolicy(retry_on=(OSError,), fail_on=(FileNotFoundError,), discard_on=(KeyError,))
    assert policy.retries(ConnectionError())
    assert not policy.retries(FileNotFoundError())
    assert not policy.retries(ValueError())
    assert policy.retries(Retry())
    assert policy.discards(KeyError())
    assert policy.discards(Discard())
    assert not policy.discards(OSError())


def test_one_exception_class_needs_no_tuple() -> None:
    policy = RetryPolicy(retry_on=OSError, fail_on=FileNotFoundError, discard_on=KeyError)
    assert policy.retries(ConnectionError())
    assert not policy.retries(FileNotFoundError())
    assert policy.discards(KeyError())
    assert policy.discards(Discard())
    assert not policy.discards(OSError())


def test_lengths_of_time_may_be_timedeltas() -> None:
    assert Retry(delay=timedelta(minutes=5)).delay == 300.0
    policy: Any = RetryPolicy
    assert policy(first_delay=timedelta(minutes=1)).delay(1, middle) == 60.0


@pytest.mark.parametrize("wrong", [math.nan, math.inf, "5", timedelta.max])
def test_a_delay_that_is_none_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"delay= is a number of seconds"):
        Retry(delay=wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"limit": -1},
        {"limit": "3"},
        {"first_delay": -1},
        {"first_delay": "5"},
        {"max_delay": math.inf},
        {"factor": 0.5},
        {"factor": math.nan},
        {"jitter": 2},
        {"discard_on": "KeyError"},
        {"retry_on": [OSError]},
        {"fail_on": (OSError, 7)},
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}.* RetryPolicy|RetryPolicy needs"):
        RetryPolicy(**wrong)

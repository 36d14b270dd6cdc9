from __future__ import annotations

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


@pytest.mark.parametrize(
    "wrong", [{"limit": -1}, {"first_delay": -1}, {"factor": 0.5}, {"jitter": 2}]
)
def test_a_policy_that_makes_no_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="RetryPolicy"):
        RetryPolicy(**wrong)  # type: ignore[arg-type]

"""The token bucket: never more than its rate and what it held, and nothing lost to rounding or to the clock."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_infer.engine.budget.bucket import Bucket


@given(
    st.floats(0.01, 1_000),
    st.floats(0.5, 100),
    st.lists(st.tuples(st.floats(0, 30), st.floats(0.1, 500)), min_size=1, max_size=60),
)
def test_what_is_taken_never_exceeds_the_rate_and_one_bucketful_in_any_window(rate, capacity, steps):
    bucket = Bucket(rate, capacity, capacity, 0.0)
    now, taken = 0.0, []
    for pause, wish in steps:
        now += pause
        bucket.refill(now)
        amount = min(wish, bucket.level)
        bucket.take(amount)
        taken.append((now, amount))
    for i, (start, _) in enumerate(taken):
        total = 0.0
        for end, amount in taken[i:]:
            total += amount
            assert total <= rate * (end - start) + capacity + 1e-6


def test_a_debt_is_filled_up_first():
    bucket = Bucket(1.0, 10.0, 0.0, 0.0)
    bucket.take(5)
    bucket.refill(4.0)
    assert bucket.level == pytest.approx(-1)
    bucket.refill(6.0)
    assert bucket.level == pytest.approx(1)


def test_what_is_put_back_never_overfills():
    bucket = Bucket(1.0, 10.0, 9.0, 0.0)
    bucket.put_back(5)
    assert bucket.level == 10


def test_a_capacity_that_shrinks_takes_nothing_away_and_lets_nothing_in():
    bucket = Bucket(1.0, 10.0, 8.0, 0.0)
    bucket.capacity = 2.0
    bucket.refill(5.0)
    bucket.put_back(3)
    assert bucket.level == 8


def test_a_clock_that_goes_back_adds_nothing():
    bucket = Bucket(1.0, 10.0, 0.0, 100.0)
    bucket.refill(50.0)
    bucket.refill(101.0)
    assert bucket.level == pytest.approx(1)

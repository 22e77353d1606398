"""Max-min division."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_infer.engine.budget.slots import max_min

DEMANDS = st.lists(st.floats(0, 1000), min_size=1, max_size=30)


@given(st.floats(0, 5000), DEMANDS)
def test_all_is_given_away_and_nobody_has_more_while_another_wants(total, demands):
    level, extra = max_min(total, demands)
    given_ = [min(demand, level) + extra for demand in demands]
    assert sum(given_) == pytest.approx(total, abs=1e-6)
    if sum(demands) > total:
        assert extra == 0
        for demand, share in zip(demands, given_, strict=True):
            assert share == pytest.approx(demand) or share == pytest.approx(max(given_))


def test_what_nobody_wants_is_divided_equally():
    assert max_min(10, [1, 3]) == (math.inf, 3)


def test_nobody_at_all():
    assert max_min(10, []) == (math.inf, 10)

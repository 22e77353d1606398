"""Usage: sums, unknown counts, and the split of a packed request's usage over its rows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_infer.contract.reply import Usage, apportion

FIELDS = ("prompt_tokens", "completion_tokens", "total_tokens", "cached_tokens", "reasoning_tokens")
counts = st.none() | st.integers(0, 10**12)
usages = st.builds(Usage, counts, counts, counts, counts, counts)


@given(usages, st.lists(st.integers(0, 10**6), min_size=1, max_size=50))
def test_a_packed_requests_usage_is_apportioned_so_that_it_sums_exactly(usage, weights):
    shares = apportion(usage, weights)
    assert len(shares) == len(weights)
    for field in FIELDS:
        whole, parts = getattr(usage, field), [getattr(share, field) for share in shares]
        if whole is None:
            assert parts == [None] * len(weights)
        else:
            assert sum(parts) == whole


@given(st.integers(0, 10**9), st.lists(st.integers(0, 10**6), min_size=1, max_size=50))
def test_every_share_is_within_one_token_of_its_exact_part(total, weights):
    parts = [share.prompt_tokens for share in apportion(Usage(prompt_tokens=total), weights)]
    scale = sum(weights) or len(weights)
    for part, weight in zip(parts, weights if sum(weights) else [1] * len(weights), strict=True):
        assert abs(part * scale - total * weight) < scale
        assert part >= 0


def test_rows_without_weight_share_alike():
    assert [share.prompt_tokens for share in apportion(Usage(prompt_tokens=5), [0, 0])] in ([3, 2], [2, 3])


@given(usages, usages)
def test_a_sum_is_unknown_only_where_both_sides_are(a, b):
    for field in FIELDS:
        x, y = getattr(a, field), getattr(b, field)
        expected = None if x is None and y is None else (x or 0) + (y or 0)
        assert getattr(a.plus(b), field) == expected


def test_unknown_is_the_default_and_never_zero():
    assert [getattr(Usage(), field) for field in FIELDS] == [None] * 5
    with pytest.raises(AttributeError):
        Usage().prompt_tokens = 1

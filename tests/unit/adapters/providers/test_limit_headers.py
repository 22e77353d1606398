"""Rate-limit headers as providers send them, and what is made of those that say something else."""

import pytest

from batch_infer.adapters.providers.limit_headers import limits_in
from batch_infer.contract.limits import Limits


def test_openai_limits_are_per_minute():
    headers = {
        "x-ratelimit-limit-requests": "5000",
        "x-ratelimit-limit-tokens": "160000",
        "x-ratelimit-remaining-requests": "4999",
        "x-ratelimit-remaining-tokens": "159976",
        "x-ratelimit-reset-requests": "12ms",
        "x-ratelimit-reset-tokens": "9ms",
    }
    assert limits_in(headers) == Limits(requests_per_minute=5000, tokens_per_minute=160000)


def test_anthropic_limits_have_input_and_output_tokens_apart():
    headers = {"date": "Tue, 14 Jul 2026 10:00:00 GMT", "anthropic-ratelimit-requests-remaining": "3999"}
    for name, limit in (("requests", 4000), ("tokens", 480000), ("input-tokens", 400000), ("output-tokens", 80000)):
        headers[f"anthropic-ratelimit-{name}-limit"] = str(limit)
        headers[f"anthropic-ratelimit-{name}-reset"] = "2026-07-14T10:00:01Z"
    assert limits_in(headers) == Limits(
        requests_per_minute=4000,
        tokens_per_minute=480000,
        input_tokens_per_minute=400000,
        output_tokens_per_minute=80000,
    )


@pytest.mark.parametrize("reset", ["6m0s", "2h3m", "1d", "179.56s", "2m59.56s", "300", "300000ms"])
def test_a_limit_that_takes_longer_than_a_minute_to_reset_is_not_per_minute(reset):
    headers = {
        "x-ratelimit-limit-requests": "14400",
        "x-ratelimit-reset-requests": reset,
        "x-ratelimit-limit-tokens": "18000",
        "x-ratelimit-reset-tokens": "7.66ms",
    }
    assert limits_in(headers) == Limits(tokens_per_minute=18000)


@pytest.mark.parametrize("reset", ["60s", "1m0s", "59.9s", "0s", "120ms", "17", "", "soon", "5 apples"])
def test_a_reset_within_a_minute_or_one_that_says_nothing_leaves_the_limit(reset):
    headers = {"x-ratelimit-limit-requests": "60", "x-ratelimit-reset-requests": reset}
    assert limits_in(headers) == Limits(requests_per_minute=60)


def test_a_reset_as_a_time_is_read_against_the_replys_own_date():
    headers = {"anthropic-ratelimit-requests-limit": "50", "anthropic-ratelimit-requests-reset": "2026-07-14T12:00:30Z"}
    assert limits_in({**headers, "date": "Tue, 14 Jul 2026 12:00:00 GMT"}) == Limits(requests_per_minute=50)
    assert limits_in({**headers, "date": "Tue, 14 Jul 2026 00:00:00 GMT"}) == Limits()
    assert limits_in({**headers, "date": "yesterday"}) == Limits(requests_per_minute=50)


@pytest.mark.parametrize("garbage", ["-1", "0", "", "none", "nan", "inf", "-inf", "1e999", "12 per second", "3,000"])
def test_what_is_no_number_above_zero_counts_as_absent(garbage):
    headers = {"x-ratelimit-limit-requests": garbage, "x-ratelimit-limit-tokens": "1000"}
    assert limits_in(headers) == Limits(tokens_per_minute=1000)
    assert limits_in({"anthropic-ratelimit-tokens-limit": garbage}) == Limits()


def test_a_reply_without_such_headers_says_nothing():
    assert limits_in({}) is None
    assert limits_in({"retry-after": "3", "x-ratelimit-limit": "5", "ratelimit-limit": "5"}) is None

"""Admission: token buckets and a task's share of the limits, on virtual time."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from virtual_clock import VirtualClock, run_virtually

from batch_infer.contract.endpoint import build_endpoint
from batch_infer.contract.errors import RowRejected
from batch_infer.engine.permits import BURST_S, DEFAULT_IN_FLIGHT_PER_TASK, Bucket, LocalShare


def endpoint(**limits):
    return build_endpoint("e", {"base_url": "http://localhost/v1", "model": "m", **limits})


def drain(bucket, steps):
    """Takes amounts as soon as the bucket allows; `(time, amount)` of each."""
    now, taken = 0.0, []
    for pause, amount in steps:
        now += pause
        while (wait := bucket.wait_s(amount, now)) > 0:
            now += wait + 1e-9
        bucket.take(amount, now)
        taken.append((now, amount))
    return taken


@given(
    st.floats(1, 100_000),
    st.lists(st.tuples(st.floats(0, 30), st.floats(0.1, 5_000)), min_size=1, max_size=60),
)
def test_a_bucket_never_gives_more_than_its_rate_and_one_burst_in_any_window(per_minute, steps):
    bucket = Bucket(per_minute, 0.0)
    taken = drain(bucket, steps)
    largest = max(bucket.capacity, *(amount for _, amount in taken))
    for i, (start, _) in enumerate(taken):
        total = 0.0
        for end, amount in taken[i:]:
            total += amount
            assert total <= bucket.rate * (end - start) + largest + 1e-3


def test_a_minute_holds_at_most_one_seconds_worth_more_than_the_limit():
    bucket = Bucket(600, 0.0)
    taken = drain(bucket, [(0.0, 1)] * 700)
    assert sum(1 for at, _ in taken if at < 60) <= 600 + 600 / 60 * BURST_S


def test_more_than_a_bucket_holds_is_taken_from_a_full_one_and_the_debt_waited_out():
    bucket = Bucket(60, 0.0)  # one a second, one at most
    assert bucket.wait_s(10, 0.0) == 0
    bucket.take(10, 0.0)
    assert bucket.wait_s(1, 0.0) == pytest.approx(10)
    assert bucket.wait_s(1, 4.0) == pytest.approx(6)
    assert bucket.wait_s(1, 10.0) == pytest.approx(0)


def test_what_is_given_back_shortens_the_wait_and_never_overfills():
    bucket = Bucket(60, 0.0)
    bucket.take(10, 0.0)
    bucket.take(-4, 0.0)
    assert bucket.wait_s(1, 0.0) == pytest.approx(6)
    bucket.take(-1000, 0.0)
    assert bucket.wait_s(1, 0.0) == 0
    bucket.take(1, 0.0)
    assert bucket.wait_s(1, 0.0) == pytest.approx(1)


def test_a_clock_that_goes_back_gives_nothing_away():
    bucket = Bucket(60, 100.0)
    bucket.take(1, 100.0)
    assert bucket.wait_s(1, 50.0) == pytest.approx(1)
    assert bucket.wait_s(1, 100.5) == pytest.approx(0.5)


def acquire_times(limits, tokens, *, slots=1):
    """When each of these requests, asked for all at once, is admitted."""

    async def main():
        clock = VirtualClock()
        share = LocalShare(endpoint(**limits), slots, clock, lambda: 0.5)
        times = []

        async def one(amount):
            await share.acquire(amount)
            times.append(clock.now())

        await asyncio.gather(*(one(amount) for amount in tokens))
        return times

    return run_virtually(main())


def test_without_limits_nobody_waits():
    assert acquire_times({}, [1, 10**9]) == [0, 0]


def test_requests_are_paced_at_the_limit():
    times = acquire_times({"requests_per_minute": 60}, [1] * 5)
    assert times == pytest.approx([0, 1, 2, 3, 4], abs=0.01)


def test_each_task_takes_its_share_of_the_limit():
    times = acquire_times({"requests_per_minute": 120}, [1] * 4, slots=4)
    assert times == pytest.approx([0, 2, 4, 6], abs=0.01)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 8), st.integers(60, 6000), st.lists(st.integers(1, 50), min_size=1, max_size=40))
def test_tokens_of_all_tasks_together_stay_within_the_limit(slots, tpm, tokens):
    times = acquire_times({"tokens_per_minute": tpm}, tokens, slots=slots)
    rate = tpm / slots / 60
    burst = max(max(1.0, rate * BURST_S), *tokens)
    for i, start in enumerate(times):
        for j in range(i, len(times)):
            # First come, first served, so tokens[i:j + 1] are what was admitted between the two.
            assert sum(tokens[i : j + 1]) <= rate * (times[j] - start) + burst + 0.01 * rate + 1e-6


def test_a_request_above_the_limit_of_a_whole_minute_is_refused_at_once():
    with pytest.raises(RowRejected) as refused:
        acquire_times({"tokens_per_minute": 100}, [101])
    assert refused.value.kind == "too_large"
    assert "tokens_per_minute (100)" in str(refused.value)


def test_settling_gives_back_what_was_reserved_and_not_used():
    async def main():
        clock = VirtualClock()
        share = LocalShare(endpoint(tokens_per_minute=600), 1, clock, lambda: 0.0)
        await share.acquire(600)
        share.settle(600, 10)
        first = await share.acquire(10)
        share.settle(10, None)  # unknown: the reservation stands
        second = await share.acquire(10)
        return first, second

    first, second = run_virtually(main())
    assert first == pytest.approx(1, abs=0.01)  # 10 of 10 were used
    assert second == pytest.approx(1, abs=0.01)


def test_tokens_given_back_meanwhile_shorten_a_wait():
    async def main():
        clock = VirtualClock()
        share = LocalShare(endpoint(tokens_per_minute=600), 1, clock, lambda: 0.0)
        await share.acquire(600)
        waiting = asyncio.ensure_future(share.acquire(10))
        await clock.sleep(2)
        share.settle(600, 0)
        return await waiting

    assert run_virtually(main()) <= 2.2


def test_a_throttle_closes_the_gate_for_everyone_and_reopens_it_with_jitter():
    async def main():
        clock = VirtualClock()
        share = LocalShare(endpoint(), 1, clock, lambda: 0.5)
        share.throttled(10)
        share.throttled(1)  # a shorter one does not open it earlier
        return [await share.acquire(1), await share.acquire(1)]

    first, second = run_virtually(main())
    assert first == pytest.approx(10.5, abs=0.01)
    assert second == 0


@pytest.mark.parametrize(
    ("limit", "slots", "expected"),
    [(None, 4, DEFAULT_IN_FLIGHT_PER_TASK), (128, 4, 32), (10, 4, 2), (3, 4, 1), (5, 0, 5)],
)
def test_the_window_is_the_endpoints_concurrency_divided_by_the_slots(limit, slots, expected):
    share = LocalShare(endpoint(max_concurrency=limit), slots, VirtualClockAtZero(), lambda: 0.0)
    assert share.max_in_flight == expected


class VirtualClockAtZero:
    def now(self):
        return 0.0

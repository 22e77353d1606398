"""Retries: which class of failure is sent again, how often, and after how long."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_infer.adapters.providers.registry import build_endpoint
from batch_infer.contract.errors import Ambiguous, JobRejected, RowRejected, Throttled, Transient, WrongReply
from batch_infer.contract.reply import Reply
from batch_infer.contract.request import Request
from batch_infer.engine.retry import RetryPolicy, RetryState, repairing, wait_before_retry

uniform = st.floats(0, 1, exclude_max=True)


def waits(error, *, policy=None, random=0.5, times=100, step=0.0):
    """The waits until the row is given up (at most `times`), time moving on by each of them."""
    state, now, found = RetryState(0.0), 0.0, []
    for _ in range(times):
        wait = wait_before_retry(policy or RetryPolicy(), state, error, now, lambda: random)
        if wait is None:
            break
        found.append(wait)
        now += wait + step
    return found


def test_a_passing_fault_uses_up_attempts():
    assert len(waits(Transient("x", kind="connect"))) == 4
    assert len(waits(Transient("x", kind="connect"), policy=RetryPolicy(max_attempts=1))) == 0


def test_a_passing_fault_backs_off_with_full_jitter_up_to_a_cap():
    error = Transient("x", kind="connect")
    policy = RetryPolicy(max_attempts=12)
    assert waits(error, policy=policy, random=0.5)[:4] == [0.25, 0.5, 1.0, 2.0]
    assert max(waits(error, policy=policy, random=0.999)) <= 30
    assert waits(error, policy=policy, random=0.0) == [0.0] * 11


@given(uniform, st.integers(1, 40))
def test_the_kth_wait_is_within_its_bounds(random, k):
    transient = waits(Transient("x", kind="k"), policy=RetryPolicy(max_attempts=k + 1), random=random)
    assert 0 <= transient[k - 1] <= min(30, 0.5 * 2 ** (k - 1))
    throttled = waits(Throttled("x", kind="k"), policy=RetryPolicy(throttle_deadline_s=1e9), random=random, times=k)
    assert 0 <= throttled[k - 1] <= min(2, 0.1 * 2 ** (k - 1))


@given(uniform, st.floats(0, 3600))
def test_what_the_endpoint_asks_to_wait_is_kept_by_the_permits_and_not_waited_twice(random, asked):
    throttled = Throttled("x", kind="k", retry_after_s=asked)
    (wait,) = waits(throttled, policy=RetryPolicy(throttle_deadline_s=1e9), random=random, times=1)
    assert wait <= 0.1


def test_a_throttle_costs_time_and_not_attempts():
    policy = RetryPolicy(max_attempts=1, throttle_deadline_s=100)
    found = waits(Throttled("x", kind="rate_limited", retry_after_s=10), policy=policy, random=0.0, step=10)
    assert len(found) == 10  # at 0, 10, … 90 s: the next reply would come after the deadline


def test_a_throttle_that_would_outlast_the_deadline_gives_up_at_once():
    assert waits(Throttled("x", kind="k", retry_after_s=2000)) == []


def test_an_ambiguous_failure_has_a_small_budget_of_its_own():
    error = Ambiguous("x", kind="timeout")
    assert len(waits(error)) == 1
    assert len(waits(error, policy=RetryPolicy(max_ambiguous_retries=3))) == 3
    assert waits(error, policy=RetryPolicy(max_ambiguous_retries=0)) == []
    assert max(waits(error, random=0.999)) <= 0.5


def test_budgets_do_not_mix():
    state, policy = RetryState(0.0), RetryPolicy(max_attempts=3, max_ambiguous_retries=1)
    sequence = [Ambiguous, Transient, Throttled, Transient]
    found = [wait_before_retry(policy, state, cls("x", kind="k"), 0.0, lambda: 0.0) for cls in sequence]
    assert all(wait is not None for wait in found)
    assert wait_before_retry(policy, state, Transient("x", kind="k"), 0.0, lambda: 0.0) is None
    assert wait_before_retry(policy, state, Ambiguous("x", kind="k"), 0.0, lambda: 0.0) is None
    assert wait_before_retry(policy, state, Throttled("x", kind="k"), 0.0, lambda: 0.0) is not None


@pytest.mark.parametrize("cls", [RowRejected, JobRejected])
def test_what_cannot_succeed_is_never_sent_again(cls):
    assert waits(cls("x", kind="k", retry_after_s=1)) == []


def test_a_passing_fault_honours_a_wait_that_the_endpoint_asks_for_up_to_the_cap():
    assert waits(Transient("x", kind="k", retry_after_s=7))[0] == 7
    assert waits(Transient("x", kind="k", retry_after_s=7000))[0] == 30


def test_the_bounds_are_the_endpoints_own():
    endpoint = build_endpoint(
        "e",
        {
            "base_url": "https://x",
            "model": "m",
            "max_attempts": 2,
            "max_ambiguous_retries": 0,
            "throttle_deadline_s": 9,
        },
    )
    assert RetryPolicy.of(endpoint) == RetryPolicy(2, 0, 9)


def test_a_wrong_reply_is_answered_with_its_correction_a_bounded_number_of_times():
    state, asked, seen = RetryState(0.0), Request(key="k", content="q", prompt_tokens=10), []
    for number in range(5):
        wrong = WrongReply("m", kind="type_mismatch", reply=Reply(text=f"said {number}"), correction=f"mend {number}")
        again = repairing(RetryPolicy(max_repairs=2), state, asked, wrong)
        if again is None:
            break
        assert again.prompt_tokens > asked.prompt_tokens
        asked = again
        seen.append(asked.turns)
    assert seen == [(("said 0", "mend 0"),), (("said 0", "mend 0"), ("said 1", "mend 1"))]
    assert (asked.key, asked.content) == ("k", "q")


@pytest.mark.parametrize(
    "result",
    [
        Reply(text="good"),
        RowRejected("m", kind="bad_request"),
        WrongReply("m", kind="type_mismatch", reply=Reply(text="cut o"), correction=None),
    ],
    ids=["reply", "refused", "cut off"],
)
def test_nothing_else_is_mended(result):
    assert repairing(RetryPolicy(), RetryState(0.0), Request(key="k", content="q"), result) is None

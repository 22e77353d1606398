"""When a job is not worth going on with."""

import pytest

from batch_infer.contract.errors import ConfigError
from batch_infer.contract.progress import Counters
from batch_infer.engine.early_stop import EarlyStop


def after(rule=None, *, done=0, from_ledger=0, **failures):
    return (rule or EarlyStop()).reason(
        Counters(rows_done=done, rows_from_ledger=from_ledger, rows_failed=sum(failures.values()), failures=failures)
    )


def test_nothing_asked_yet_goes_on():
    assert after() is None
    assert after(EarlyStop(0.0, 1), done=50, from_ledger=50) is None


def test_the_first_hundred_failures_of_one_kind_stop_the_job():
    assert after(bad_request=99) is None
    assert "first 100 requests all failed with 'bad_request'" in after(bad_request=100)


def test_one_answer_or_a_second_kind_of_failure_shows_that_it_is_not_systematic():
    assert after(done=1, bad_request=5000) is None
    assert after(timeout=1, bad_request=5000) is None


def test_answers_from_the_ledger_are_no_sign_that_the_endpoint_works():
    assert after(done=1000, from_ledger=1000, bad_request=100) is not None


def test_the_ratio_is_of_what_was_asked_now_and_judged_from_the_hundredth_on():
    rule = EarlyStop(max_error_ratio=0.05)
    assert after(rule, done=9, timeout=90) is None
    assert "6 of 100" in after(rule, done=94, timeout=6)
    assert after(rule, done=95, timeout=5) is None
    assert "10 of 110" in after(rule, done=1100, from_ledger=1000, timeout=10)


def test_rows_that_were_not_sent_are_not_failures_of_the_endpoint():
    assert after(EarlyStop(0.05), done=95, timeout=5, not_sent=10_000) is None
    assert after(not_sent=10_000) is None


def test_both_can_be_switched_off():
    assert after(EarlyStop(1.0, None), bad_request=10_000) is None


@pytest.mark.parametrize("ratio", [-0.1, 1.5, "0.5", None, float("nan"), True])
def test_a_ratio_out_of_range_is_refused(ratio):
    with pytest.raises(ConfigError, match="max_error_ratio"):
        EarlyStop(ratio)


@pytest.mark.parametrize("failures", [0, -1, 2.5, "7", True])
def test_a_number_of_failures_that_is_none_is_refused(failures):
    with pytest.raises(ConfigError, match="stop_after_failures"):
        EarlyStop(1.0, failures)

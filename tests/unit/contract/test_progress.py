"""How counters of task attempts add up to a call's progress."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batch_infer.contract.progress import ROW_FIELDS, CallProgress, Counters, TaskId

counts = st.integers(0, 10**9)
counters = st.builds(
    Counters,
    **{name: counts for name in Counters.__struct_fields__ if name not in ("cost_usd", "waiting_s", "failures")},
    cost_usd=st.none() | st.integers(0, 10**6).map(float),
    waiting_s=st.integers(0, 10**6).map(float),
    failures=st.dictionaries(st.sampled_from(["timeout", "refusal"]), counts, max_size=2),
)
tasks = st.builds(TaskId, stage=st.integers(0, 2), partition=st.integers(0, 3), attempt=st.integers(0, 3))
reports = st.lists(st.tuples(tasks, counters), max_size=20)


def progress_of(*reports):
    progress = CallProgress()
    for task, latest in reports:
        progress.apply(task, latest)
    return progress


def test_nothing_reported_is_nothing_done_at_unknown_cost():
    assert CallProgress().totals() == Counters()
    assert CallProgress().totals().cost_usd is None


def test_partitions_and_stages_add_up():
    totals = progress_of(
        (TaskId(1, 0, 10), Counters(rows_done=5, rows_failed=1, requests=6, cost_usd=0.5)),
        (TaskId(1, 1, 11), Counters(rows_done=7, rows_null=2, requests=7, cost_usd=0.25)),
        (TaskId(2, 0, 12), Counters(rows_done=1, requests=1)),
    ).totals()
    assert totals == Counters(rows_done=13, rows_failed=1, rows_null=2, requests=14, cost_usd=0.75)


def test_a_later_report_replaces_the_earlier():
    task = TaskId(1, 0, 10)
    assert progress_of((task, Counters(requests=5)), (task, Counters(requests=8))).totals().requests == 8


def test_attempts_of_a_partition_are_all_billed_but_its_rows_count_once():
    totals = progress_of(
        (TaskId(1, 0, 10), Counters(rows_done=90, rows_from_ledger=0, requests=95, prompt_tokens=900, cost_usd=9.0)),
        (TaskId(1, 0, 11), Counters(rows_done=100, rows_from_ledger=90, requests=10, prompt_tokens=100, cost_usd=1.0)),
    ).totals()
    assert totals == Counters(rows_done=100, rows_from_ledger=90, requests=105, prompt_tokens=1000, cost_usd=10.0)


def test_failures_add_up_by_kind_and_count_once_a_partition():
    totals = progress_of(
        (TaskId(1, 0, 10), Counters(rows_failed=3, failures={"timeout": 2, "refusal": 1})),
        (TaskId(1, 0, 11), Counters(rows_failed=1, failures={"timeout": 1})),
        (TaskId(1, 1, 12), Counters(rows_failed=4, failures={"timeout": 4})),
    ).totals()
    assert (totals.rows_failed, totals.failures) == (7, {"timeout": 6, "refusal": 1})


def test_a_young_attempt_does_not_take_back_rows():
    totals = progress_of(
        (TaskId(1, 0, 10), Counters(rows_done=90)), (TaskId(1, 0, 11), Counters(rows_done=3, rows_failed=1))
    ).totals()
    assert (totals.rows_done, totals.rows_failed) == (90, 0)


def test_only_running_attempts_are_in_flight():
    progress = progress_of(
        (TaskId(1, 0, 10), Counters(in_flight=4)),
        (TaskId(1, 1, 11), Counters(in_flight=5)),
        (TaskId(1, 2, 12), Counters(in_flight=6)),
    )
    progress.apply(TaskId(1, 1, 11), Counters(in_flight=5, requests=3), finished=True)
    progress.lost(TaskId(1, 2, 12))
    assert progress.totals().in_flight == 4
    assert progress.running() == {TaskId(1, 0, 10)}
    assert (progress.attempts_seen, progress.attempts_finished) == (3, 1)
    progress.apply(TaskId(1, 2, 12), Counters(in_flight=7))
    assert progress.totals().in_flight == 11, "a report after a broken connection brings it back"


def test_stragglers_after_the_last_report_are_ignored():
    progress, task = CallProgress(), TaskId(1, 0, 10)
    progress.apply(task, Counters(requests=9), finished=True)
    progress.apply(task, Counters(requests=4, in_flight=2))
    assert progress.totals() == Counters(requests=9)
    assert not progress.running()


def test_a_cost_is_unknown_only_where_all_are():
    known, unknown = Counters(requests=1, cost_usd=0.0), Counters(requests=1)
    assert progress_of((TaskId(1, 0, 1), unknown), (TaskId(1, 1, 2), unknown)).totals().cost_usd is None
    assert progress_of((TaskId(1, 0, 1), known), (TaskId(1, 1, 2), unknown)).totals().cost_usd == 0.0


@settings(max_examples=40)
@given(reports)
def test_repeating_reports_changes_nothing(given_reports):
    once = progress_of(*given_reports)
    latest = list(once.latest().items())
    assert progress_of(*given_reports, *latest, *latest).totals() == once.totals()


@settings(max_examples=40)
@given(reports, st.randoms())
def test_the_order_of_tasks_does_not_matter(given_reports, random):
    latest = list(dict(given_reports).items())
    shuffled = random.sample(latest, len(latest))
    assert progress_of(*shuffled).totals() == progress_of(*given_reports).totals()


@settings(max_examples=40)
@given(reports)
def test_totals_are_the_sums_by_hand(given_reports):
    latest = dict(given_reports)
    totals = progress_of(*given_reports).totals()
    assert totals.requests == sum(c.requests for c in latest.values())
    assert totals.waiting_s == pytest.approx(sum(c.waiting_s for c in latest.values()))
    places = {(t.stage, t.partition) for t in latest}
    settled = sum(max(c.rows_settled for t, c in latest.items() if (t.stage, t.partition) == p) for p in places)
    assert totals.rows_settled == settled
    for name in ROW_FIELDS:
        if name != "failures":
            assert getattr(totals, name) <= sum(getattr(c, name) for c in latest.values())


@settings(max_examples=40)
@given(reports)
def test_a_copy_does_not_follow(given_reports):
    progress = progress_of(*given_reports)
    copy, before = progress.copy(), progress.totals()
    progress.apply(TaskId(99, 0, 99), Counters(requests=1, rows_done=1))
    assert copy.totals() == before
    assert progress.totals().requests == before.requests + 1


@settings(max_examples=40)
@given(counters, tasks)
def test_counters_survive_the_wire(latest, task):
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(latest), type=Counters) == latest
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(task), type=TaskId) == task

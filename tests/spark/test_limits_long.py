"""Limits over a minute and more: how much of what an endpoint allows is used, and how often it has to refuse.

Each test prints its figures (pytest -s).
"""

from __future__ import annotations

import random
import threading
import time

import pytest
from pyspark.sql import functions as F  # noqa: N812

import batch_infer as bi

pytestmark = [pytest.mark.spark, pytest.mark.long, pytest.mark.usefixtures("no_ledger")]

UNEVEN = [2000, 700, 250, 50]


def parts(spark, sizes, bodies=None):
    """Rows `(id, body)` in partitions of these sizes."""
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    rdd = spark.sparkContext.parallelize(list(zip(starts, sizes, strict=True)), len(sizes))
    rows = rdd.flatMap(
        lambda part: [(i, bodies[i] if bodies else f"prompt {i}") for i in range(part[0], part[0] + part[1])]
    )
    return spark.createDataFrame(rows, "id INT, body STRING")


def write(df, endpoint, **options):
    df.select(bi.ai_query(endpoint, "body", **options).alias("r")).write.format("noop").mode("overwrite").save()


def figures(endpoint, what):
    stats, arrivals = endpoint.stats(), endpoint.arrivals()
    took = arrivals[-1] - arrivals[0]
    refused = stats["status_counts"].get("429", 0)
    print(f"\n{what}: {len(arrivals)} requests in {took:.1f} s, {refused} refused, {stats['peak_in_flight']} at once")
    return took, refused, arrivals


def busiest(arrivals, window_s=60.0):
    """The most requests in any window."""
    most = start = 0
    for end, at in enumerate(arrivals):
        while arrivals[start] <= at - window_s:
            start += 1
        most = max(most, end - start + 1)
    return most


@pytest.mark.parametrize(("configured", "longest", "most_refused"), [(True, 1.05, 0), (False, 1.15, 0.02)])
def test_requests_per_minute(spark, start_endpoint, configured, longest, most_refused):
    fields = {"requests_per_minute": 3000} if configured else {}
    endpoint = start_endpoint("rpm", requests_per_minute=3000, burst=50, latency_s=0.5, fields=fields)
    write(parts(spark, UNEVEN), "rpm")
    took, refused, arrivals = figures(endpoint, f"3,000 a minute, configured: {configured}")
    assert endpoint.stats()["status_counts"]["200"] == 3000
    assert took <= longest * 60
    assert refused <= most_refused * 3000
    if configured:
        assert busiest(arrivals) <= 3000 * 1.02


def test_tokens_per_minute_with_prompts_of_very_different_lengths(spark, start_endpoint):
    """The endpoint reserves prompt + max_tokens at admission, and credits back what the reply did not need."""
    per_minute = 240_000
    endpoint = start_endpoint(
        "tpm", tokens_per_minute=per_minute, burst_tokens=per_minute // 12, latency_s=0.5,
        fields={"tokens_per_minute": per_minute},
    )  # fmt: skip
    pick = random.Random(7)
    lengths = [round(10 * 100 ** pick.random()) for _ in range(1000)]
    bodies = [f"{i} " + "word " * length for i, length in enumerate(lengths)]
    write(parts(spark, [650, 250, 75, 25], bodies), "tpm", model_parameters={"max_tokens": 32})
    took, refused, _ = figures(endpoint, "tokens")
    stats = endpoint.stats()
    used = stats["prompt_tokens"] + stats["completion_tokens"]
    share = used / (took * per_minute / 60)
    print(f"{used:,} tokens, {share:.3f} of what was allowed")
    assert stats["status_counts"]["200"] == 1000
    assert share >= 0.95
    assert refused <= 0.01 * 1000


def test_one_partition_with_most_of_the_rows_keeps_the_whole_budget(spark, start_endpoint):
    endpoint = start_endpoint(
        "skew", requests_per_minute=3000, burst=50, latency_s=0.5, fields={"requests_per_minute": 3000}
    )
    write(parts(spark, [2250, 100, 100, 50]), "skew")
    took, refused, arrivals = figures(endpoint, "skew")
    per_5_s = [sum(start <= at - arrivals[0] < start + 5 for at in arrivals) for start in range(0, int(took) - 4, 5)]
    print(per_5_s)
    assert refused == 0
    assert sum(per_5_s) >= 0.95 * 250 * len(per_5_s)
    assert min(per_5_s[1:]) >= 0.9 * 250


def test_a_capacity_of_slots_is_found_and_not_overrun(spark, start_endpoint):
    """As model servers have it: so many requests at once, the others wait in a queue without end."""
    endpoint = start_endpoint("slots", slots=32, latency_s=0.4, latency_jitter_s=0.4)
    write(parts(spark, [1500, 1500]), "slots")
    _, _, arrivals = figures(endpoint, "32 slots")
    served = len(arrivals) / (endpoint.stats()["last_reply_at"] - arrivals[0])
    best = 32 / 0.6
    print(f"{served / best:.3f} of the best")
    assert served >= 0.85 * best
    assert endpoint.stats()["peak_in_flight"] <= 3 * 32


def test_a_wrong_key_in_mid_run_stops_every_task_within_two_seconds(spark, start_endpoint):
    endpoint = start_endpoint("revoked", latency_s=0.2, fields={"max_concurrency": 32})
    failed_at = []

    def act():
        with pytest.raises(Exception, match="HTTP 401"):
            write(parts(spark, [2000, 2000]), "revoked")
        failed_at.append(time.monotonic())

    thread = threading.Thread(target=act)
    thread.start()
    endpoint.wait_until("requests", at_least=300, timeout_s=60)
    in_flight = endpoint.stats()["peak_in_flight"]
    endpoint.configure(unauthorized_after=1)
    revoked_at, seen = time.monotonic(), endpoint.stats()["requests"]
    thread.join(60)
    stats = endpoint.stats()
    stopped = stats["last_reply_at"] - revoked_at
    print(f"\n401: last request {stopped:.2f} s after; {stats['requests'] - seen} requests; job over after "
          f"{failed_at[0] - revoked_at:.1f} s")  # fmt: skip
    assert stopped <= 2
    assert stats["requests"] - seen <= 2 * in_flight


def test_a_refused_row_under_fail_on_error_is_asked_once_and_not_four_times(spark, start_endpoint):
    from batch_infer.testing import Rule

    endpoint = start_endpoint("picky", rules=[Rule("prompt 150", status=400)], fields={"max_concurrency": 8})
    with pytest.raises(Exception, match="HTTP 400"):
        write(parts(spark, [200, 200]), "picky")
    assert endpoint.calls_by_prompt()["prompt 150"] == 1
    assert max(endpoint.calls_by_prompt().values()) == 1


def test_a_job_says_what_bound_it_and_keeps_to_it(spark, start_endpoint, tmp_path):
    endpoint = start_endpoint("bound", latency_s=0.3, fields={"requests_per_minute": 1200})
    summary = bi.run(
        parts(spark, [600]).select("id", F.col("body")),
        endpoint="bound", prompt="{body}", output=str(tmp_path / "out"), ledger=str(tmp_path / "ledger"),
        progress=False,
    )  # fmt: skip
    took, _, arrivals = figures(endpoint, "job")
    print(summary.bound_by, f"{summary.waiting_s:.0f} s waited")
    assert "requests per minute" in summary.bound_by
    assert took <= 1.05 * 30
    assert busiest(arrivals, 10.0) <= 1.1 * 200


@pytest.mark.timeout(900)
def test_a_rate_that_falls_and_rises_again_is_followed(spark, start_endpoint):
    """50, then 15, then 50 requests a second, 200 s each; nothing is configured."""
    phases, each_s = (50, 15, 50), 200
    endpoint = start_endpoint("changing", requests_per_minute=3000, burst=50, latency_s=0.5)
    thread = threading.Thread(target=write, args=(parts(spark, [11_000, 11_000]), "changing"))
    thread.start()
    endpoint.wait_until("requests", at_least=1, timeout_s=60)
    began = time.monotonic()
    for number, rate in enumerate(phases[1:], start=1):
        time.sleep(began + number * each_s - time.monotonic())
        endpoint.configure(requests_per_minute=rate * 60)
    thread.join(400)
    took, refused, arrivals = figures(endpoint, "50, 15, 50 a second")
    allowed = sum(rate * min(max(took - number * each_s, 0), each_s) for number, rate in enumerate(phases))
    answered = endpoint.stats()["status_counts"]["200"]
    print(f"{answered / allowed:.3f} of what was allowed, {refused / len(arrivals):.4f} refused")
    assert answered == 22_000
    assert answered >= 0.93 * allowed
    assert refused <= 0.03 * len(arrivals)

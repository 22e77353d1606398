"""Limits, as a job and a column keep them: one budget for all tasks, what binds is said, a bad job ends early."""

from __future__ import annotations

import pytest
from pyspark.sql import functions as F  # noqa: N812

import batch_infer as bi
from batch_infer.testing import Rule

pytestmark = pytest.mark.spark


def parts(spark, sizes):
    """Rows `(id, body)` in partitions of these sizes."""
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    rdd = spark.sparkContext.parallelize(list(zip(starts, sizes, strict=True)), len(sizes))
    ids = rdd.flatMap(lambda part: [(i,) for i in range(part[0], part[0] + part[1])])
    return spark.createDataFrame(ids, "id INT").selectExpr("id", "concat('prompt ', id) body")


def write(df, endpoint):
    df.select(bi.ai_query(endpoint, "body").alias("r")).write.format("noop").mode("overwrite").save()


def counts(endpoint):
    return endpoint.stats()["status_counts"]


def test_a_configured_rate_is_kept_by_tasks_of_very_different_sizes_without_one_refusal(spark, start_endpoint):
    endpoint = start_endpoint(
        "paced", requests_per_minute=1800, burst=30, latency_s=0.1, fields={"requests_per_minute": 1800}
    )
    write(parts(spark, [90, 24, 5, 1]), "paced")
    assert counts(endpoint) == {"200": 120}
    arrivals = endpoint.arrivals()
    assert arrivals[-1] - arrivals[0] >= 0.9 * (120 - 30) / 30, "the endpoint was asked no faster than it allows"


@pytest.mark.usefixtures("no_ledger")
def test_max_concurrency_holds_for_all_tasks_together_and_one_task_may_use_it_all(spark, start_endpoint):
    endpoint = start_endpoint("few", latency_s=0.1, fields={"max_concurrency": 6})
    write(parts(spark, [60, 60]), "few")
    assert endpoint.stats()["peak_in_flight"] <= 6
    endpoint.reset()
    write(parts(spark, [100]), "few")
    assert endpoint.stats()["peak_in_flight"] == 6


def test_what_headers_say_is_kept_with_nothing_configured(spark, start_endpoint):
    endpoint = start_endpoint("telling", requests_per_minute=1800, burst=30, latency_s=0.1, rate_headers=True)
    write(parts(spark, [60, 60]), "telling")
    seen = counts(endpoint)
    assert seen["200"] == 120
    assert seen.get("429", 0) <= 20, "a few before the first header was read"


def test_a_request_that_can_never_fit_fails_alone_and_at_once(spark, start_endpoint):
    endpoint = start_endpoint("small", fields={"tokens_per_minute": 3000})
    body = F.when(F.col("id") == 3, F.repeat(F.lit("long "), 4000)).otherwise(F.concat(F.lit("p "), "id"))
    df = parts(spark, [5, 5]).withColumn("body", body)
    asked = bi.ai_query("small", "body", details=True, model_parameters={"max_tokens": 20})
    rows = {row.id: row.r for row in df.select("id", asked.alias("r")).collect()}
    assert rows[3].error.kind == "too_large"
    assert "tokens per minute" in rows[3].error.message
    assert rows[3].attempts == 0
    assert [rows[i].result for i in range(10) if i != 3] == [f"echo: p {i}" for i in range(10) if i != 3]
    assert endpoint.stats()["requests"] == 9


def test_a_wrong_key_found_late_stops_every_task_with_what_was_in_flight(spark, start_endpoint):
    in_flight = 8
    endpoint = start_endpoint("revoked", unauthorized_after=10, latency_s=0.1, fields={"max_concurrency": in_flight})
    with pytest.raises(Exception, match="HTTP 401"):
        write(parts(spark, [500, 500, 500, 500]), "revoked")
    assert endpoint.stats()["requests"] <= 9 + in_flight


class TestJob:
    def run(self, spark, tmp_path, endpoint, rows=400, **options):
        df = parts(spark, [rows])
        options = {"mode": "overwrite", "progress": False, "model_parameters": {"max_tokens": 16}, **options}
        return bi.run(df, endpoint=endpoint, prompt="{body}", output=str(tmp_path / "out"), **options)

    def test_the_summary_names_what_binds_and_what_it_cost(self, spark, start_endpoint, tmp_path):
        start_endpoint("paced", fields={"requests_per_minute": 1200})
        summary = self.run(spark, tmp_path, "paced", rows=120)
        assert "requests per minute" in summary.bound_by
        assert "'paced'" in summary.bound_by
        assert summary.waiting_s > 0
        assert (summary.throttled, summary.unleased_tasks, summary.stopped_early) == (0, 0, None)

    def test_a_job_whose_first_requests_all_fail_alike_ends_early_and_goes_on_later(
        self, spark, start_endpoint, tmp_path
    ):
        error = {"message": "no such parameter", "type": "invalid_request_error"}
        endpoint = start_endpoint("wrong", rules=[Rule(status=400, error=error)], fields={"requests_per_minute": 2400})
        summary = self.run(spark, tmp_path, "wrong", stop_after_failures=20)
        sent = endpoint.stats()["requests"]
        assert 20 <= sent < 200
        assert "the first" in summary.stopped_early
        assert summary.errors == {"bad_request": sent, "not_sent": 400 - sent}
        rows = spark.read.parquet(str(tmp_path / "out"))
        assert rows.count() == 400
        unsent = rows.where("error.kind = 'not_sent'")
        assert unsent.where("error.retryable AND attempts = 0 AND error.message LIKE '%stopped early%'").count() == (
            400 - sent
        )
        endpoint.configure(rules=[])
        bi.register_endpoint("wrong", base_url=endpoint.base_url, model="m")
        again = self.run(spark, tmp_path, "wrong", mode="resume", retry_failed=True)
        assert (again.succeeded, again.stopped_early) == (400, None)

    def test_an_append_that_is_stopped_early_adds_nothing_and_goes_on_with_the_same_command(
        self, spark, start_endpoint, tmp_path
    ):
        endpoint = start_endpoint("wrong", fields={"requests_per_minute": 2400})
        assert self.run(spark, tmp_path, "wrong", rows=50).rows == 50
        endpoint.configure(rules=[Rule(status=500)])
        bi.register_endpoint("wrong", base_url=endpoint.base_url, model="m", requests_per_minute=2400, max_attempts=1)
        more = {"mode": "append", "stop_after_failures": 20}
        with pytest.raises(bi.JobRejected, match=r"stopped early.*first.*Nothing was added.*same command again"):
            self.run(spark, tmp_path, "wrong", **more)
        assert spark.read.parquet(str(tmp_path / "out")).count() == 50
        endpoint.configure(rules=[])
        assert self.run(spark, tmp_path, "wrong", **more).succeeded == 400
        assert spark.read.parquet(str(tmp_path / "out")).count() == 450

    def test_a_job_with_too_many_errors_ends_early_and_keeps_its_answers(self, spark, start_endpoint, tmp_path):
        endpoint = start_endpoint(
            "half", rules=[Rule(fraction=0.5, status=400)], latency_s=0.02, fields={"requests_per_minute": 3000}
        )
        summary = self.run(spark, tmp_path, "half", max_error_ratio=0.2)
        sent = endpoint.stats()["requests"]
        assert 100 <= sent < 400
        assert summary.errors["not_sent"] == 400 - sent
        assert summary.succeeded + summary.errors["bad_request"] == sent
        assert summary.succeeded > 0
        endpoint.configure(rules=[])
        bi.register_endpoint("half", base_url=endpoint.base_url, model="m")
        again = self.run(spark, tmp_path, "half", retry_failed=True)
        assert again.succeeded == 400
        assert endpoint.stats()["requests"] == sent + 400 - summary.succeeded

    def test_without_the_rules_a_job_of_failures_runs_to_its_end(self, spark, start_endpoint, tmp_path):
        endpoint = start_endpoint("wrong", rules=[Rule(status=400)])
        summary = self.run(spark, tmp_path, "wrong", rows=300, stop_after_failures=None)
        assert summary.errors == {"bad_request": 300}
        assert endpoint.stats()["requests"] == 300

    @pytest.mark.parametrize("options", [{"max_error_ratio": 1.5}, {"stop_after_failures": 0}])
    def test_values_out_of_range_are_refused_before_any_call(self, spark, endpoint, tmp_path, options):
        with pytest.raises(bi.ConfigError, match=next(iter(options))):
            self.run(spark, tmp_path, "echo", **options)
        assert endpoint.stats()["requests"] == 0

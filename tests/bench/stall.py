"""Owns the measurement of the window: one row of 20 s among 10,000 of 10 ms, in one task with 64 in flight."""

from __future__ import annotations

import argparse
import tempfile

from pyspark.sql import functions as F  # noqa: N812 - Spark's own convention

import batch_infer as bi
from batch_infer.testing import FaultEndpoint, Rule
from tests.bench import report
from tests.bench.sessions import local_session, prompts

ROWS = 10_000
WINDOW = 64
SLOTS = 2
SLOW_S = 20.0
SLOW_ROW = 37


def measure(options: argparse.Namespace) -> None:
    rows = options.rows or ROWS
    report.begin("stall", f"{rows:,} rows of 10 ms, one of {SLOW_S:g} s among the first hundred, window {WINDOW}")
    rule = Rule(match="very slow", latency_s=SLOW_S)
    with tempfile.TemporaryDirectory() as scratch, FaultEndpoint(rules=[rule], latency_s=0.01) as endpoint:
        spark = local_session(scratch, SLOTS)
        # The limit is divided by the task slots; one partition is one task, which gets its share and no more.
        bi.register_endpoint("bench", base_url=endpoint.base_url, model="m", max_concurrency=WINDOW * SLOTS)
        text = F.when(F.col("id") == SLOW_ROW, F.lit("very slow")).otherwise(F.col("prompt"))
        prompts(spark, 200, 1).withColumn("reply", bi.ai_query("bench", "prompt")).write.format("noop").mode(
            "overwrite"
        ).save()
        endpoint.reset()
        frame = prompts(spark, rows, 1).withColumn("prompt", text).withColumn("reply", bi.ai_query("bench", "prompt"))
        frame.write.mode("overwrite").parquet(f"{scratch}/out")
        seen = endpoint.stats()
        spark.stop()
    seconds = seen["last_reply_at"] - seen["first_request_at"]
    report.table(
        ("", "seconds", "× slow row", "peak in flight", "requests"),
        [("first request to last reply", seconds, seconds / SLOW_S, seen["peak_in_flight"], seen["requests"])],
    )
    print("   Time and peak by the endpoint's own clock and count.")
    report.result(
        "stall", rows=rows, window=WINDOW, slow_s=SLOW_S, seconds=seconds, to_slow_row=seconds / SLOW_S,
        peak_in_flight=seen["peak_in_flight"], requests=seen["requests"],
    )  # fmt: skip

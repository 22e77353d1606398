"""Cancelling: when Spark ends a job, the calls end too, although the worker is blocked on the endpoint."""

from __future__ import annotations

import threading
import time

import pytest
from pyspark.sql import functions as F  # noqa: N812

import batch_infer as bi

pytestmark = pytest.mark.spark


def test_cancelling_the_job_stops_the_calls_within_seconds(spark, start_endpoint):
    endpoint = start_endpoint("slow", latency_s=0.5, fields={"max_concurrency": 8})
    df = spark.range(2000).select(bi.ai_query("slow", F.col("id").cast("string")).alias("r"))
    failed = threading.Event()

    def act():
        spark.sparkContext.setJobGroup("cancelled", "to be cancelled", interruptOnCancel=True)
        try:
            df.write.format("noop").mode("overwrite").save()
        except Exception:
            failed.set()

    thread = threading.Thread(target=act)
    thread.start()
    endpoint.wait_until("requests", at_least=8, timeout_s=60)
    spark.sparkContext.cancelAllJobs()
    thread.join(20)
    assert failed.is_set()
    cancelled_at = time.monotonic()
    counts = [endpoint.stats()["requests"]]
    while time.monotonic() - cancelled_at < 8:
        time.sleep(1)  # what is counted is how long calls go on arriving, so time itself is what is waited for
        counts.append(endpoint.stats()["requests"])
    assert counts[-1] == counts[5], counts

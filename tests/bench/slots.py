"""Owns the measurement of finding a server's slots: llama.cpp's server with two, every reply equally long.

A sweep finds the best fixed `max_concurrency`; then that one and "nothing configured" take turns.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from statistics import quantiles

from pyspark.sql import SparkSession

import batch_infer as bi
from batch_infer.adapters.local.server import LocalServers
from tests.bench import report
from tests.bench.sessions import local_session, prompts

ROWS = 100
SWEEP = (1, 2, 3, 4, 8)
MODEL_PARAMETERS = {"max_tokens": 24, "temperature": 0.0, "ignore_eos": True}
WARM_ROWS = 6


def measure(options: argparse.Namespace) -> None:
    rows = options.rows or ROWS
    pairs = options.pairs or 5
    length = MODEL_PARAMETERS["max_tokens"]
    report.begin("slots", f"llama.cpp with two slots, {rows} rows of {length} tokens each, {pairs} pairs")
    servers = LocalServers()
    base_url = servers.url("chat")
    with tempfile.TemporaryDirectory() as scratch:
        # As many slots of Spark's as the largest window, so that a fixed window is exactly what is configured.
        spark = local_session(scratch, 1)
        for window in SWEEP:
            name = f"fixed-{window}"  # other models, so that they do not share one budget
            bi.register_endpoint(name, base_url=base_url, model=name, max_concurrency=window)
        bi.register_endpoint("found", base_url=base_url, model="found")

        def run(name: str, count: int = rows) -> tuple[float, float]:
            return asked(spark, name, count, f"{scratch}/out")

        run("fixed-2", WARM_ROWS)
        sweep = {window: run(f"fixed-{window}") for window in SWEEP}
        first = run("found")
        best = max(sweep, key=lambda window: sweep[window][0])
        runs = []
        for pair in range(pairs):
            order = ("found", f"fixed-{best}") if pair % 2 else (f"fixed-{best}", "found")
            runs.append({name: run(name) for name in order})
        spark.stop()
    servers.stop()
    ratio = report.middle([pair["found"][0] / pair[f"fixed-{best}"][0] for pair in runs])
    late = report.middle([pair["found"][1] / pair[f"fixed-{best}"][1] for pair in runs])
    report.table(
        ("", "rows/s", "p95 latency s"),
        [(f"fixed at {window}, sweep", *figures) for window, figures in sweep.items()]
        + [("found, the session's first query", *first)]
        + [
            (name, report.middle([pair[name][0] for pair in runs]), report.middle([pair[name][1] for pair in runs]))
            for name in (f"fixed-{best}", "found")
        ],
    )
    print("   What the first query of a session finds out, the later ones begin with.")
    print(f"   Nothing configured: {ratio:.3f} of the best's rows/s, {late:.3f} of its p95 latency (medians of pairs).")
    report.result("slots", rows=rows, pairs=pairs, best=best, ratio=ratio, p95_ratio=late)


def asked(spark: SparkSession, name: str, rows: int, out: str) -> tuple[float, float]:
    """Rows a second, and the 95th percentile of the requests' latency in seconds."""
    column = bi.ai_query(name, "prompt", details=True, fresh=True, model_parameters=MODEL_PARAMETERS)
    started = time.monotonic()
    prompts(spark, rows, 1).withColumn("reply", column).write.mode("overwrite").parquet(out)
    seconds = time.monotonic() - started
    latencies = [row.latency_ms / 1000 for row in spark.read.parquet(out).select("reply.latency_ms").collect()]
    return rows / seconds, quantiles(latencies, n=20)[-1]

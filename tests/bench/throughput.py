"""Owns the measurement of rows/s: batch_infer, the naive UDF and a loop by hand, against the same endpoint, in turns.

All have 128 requests in flight in all. The two that run in Spark (local[2], two tasks) read generated prompts and write
Parquet; the loop by hand keeps its answers in a list. The naive UDF gets fewer rows, because it takes so long.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from typing import Any

from pyspark.sql import DataFrame

import batch_infer as bi
from tests.bench import by_hand, naive, processes, report
from tests.bench.nginx import endpoint
from tests.bench.sessions import local_session, prompts

ROWS = 20_000
NAIVE_ROWS = 4_000
IN_FLIGHT = 128
LATENCY_MS = 50.0
LEDGER_SETTING = "spark.batch_infer.ledger"


def measure(options: argparse.Namespace) -> None:
    rows = options.rows or ROWS
    pairs = options.pairs or 3
    latency_ms = LATENCY_MS if options.latency_ms is None else options.latency_ms
    report.begin("throughput", f"{rows:,} rows, {latency_ms:g} ms, {IN_FLIGHT} in flight in all, {pairs} rounds")
    figures: dict[str, list[dict[str, float]]] = {"batch_infer": [], "naive": [], "by_hand": []}
    with tempfile.TemporaryDirectory() as scratch, endpoint(scratch, latency_ms) as server:
        spark = local_session(scratch)
        bi.register_endpoint("bench", base_url=server.base_url, model="m", max_concurrency=IN_FLIGHT)

        def ours(count: int) -> dict[str, float]:
            spark.conf.set(LEDGER_SETTING, tempfile.mkdtemp(dir=scratch))  # an empty one, so that every row is asked
            frame = prompts(spark, count, 2).withColumn("reply", bi.ai_query("bench", "prompt"))
            return written(frame, count, scratch, server.pid)

        def theirs(count: int) -> dict[str, float]:
            frame = prompts(spark, count, 2).withColumn("reply", naive.udf(server.base_url)("prompt"))
            return written(frame, count, scratch, server.pid)

        ours(2_000), theirs(500), by_hand.run(server.base_url, 500, IN_FLIGHT)  # warm
        for _ in range(pairs):
            figures["batch_infer"].append(ours(rows))
            figures["naive"].append(theirs(min(rows, NAIVE_ROWS)))
            figures["by_hand"].append(by_hand.run(server.base_url, rows, IN_FLIGHT))
        spark.stop()
    show(figures, latency_ms, rows)


def written(frame: DataFrame, rows: int, scratch: str, server_pid: int) -> dict[str, float]:
    """Runs a frame into Parquet."""
    before, started = processes.cpu({server_pid}), time.monotonic()
    frame.write.mode("overwrite").parquet(f"{scratch}/out")
    seconds = time.monotonic() - started
    used = processes.cpu({server_pid}).since(before)
    return {"rows": rows, "rows_per_s": rows / seconds, "cpu_s": used.python_s, "jvm_cpu_s": used.jvm_s}


def show(figures: dict[str, list[dict[str, float]]], latency_ms: float, rows: int) -> None:
    speed = {name: [run["rows_per_s"] for run in runs] for name, runs in figures.items()}
    shown: list[list[Any]] = []
    for name, runs in figures.items():
        ratios = {
            other: report.middle([ours / theirs for ours, theirs in zip(speed[name], speed[other], strict=True)])
            for other in ("naive", "by_hand")
        }
        cpu = report.middle([1000 * run["cpu_s"] / run["rows"] for run in runs])
        jvm = report.middle([1000 * run["jvm_cpu_s"] / run["rows"] for run in runs if "jvm_cpu_s" in run])
        rate = report.middle(speed[name])
        shown.append([name, rate, f"{min(speed[name]):,.0f}-{max(speed[name]):,.0f}", *ratios.values(), cpu, jvm])
        report.result(
            "throughput", client=name, latency_ms=latency_ms, rows=int(runs[0]["rows"]), rounds=len(runs),
            rows_per_s=rate, to_naive=ratios["naive"], to_by_hand=ratios["by_hand"],
            python_cpu_s_per_1000_rows=cpu, jvm_cpu_s_per_1000_rows=jvm,
        )  # fmt: skip
    head = ("", "rows/s", "range", "× naive", "× by hand", "Python CPU s / 1,000 rows", "JVM CPU s / 1,000 rows")
    report.table(head, shown)
    print("   Medians; ratios are medians of each round's ratio. Python: the driver and its workers (by hand: its one")
    print("   process); JVM: the driver's, task threads included. The endpoint does not count.", flush=True)

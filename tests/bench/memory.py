"""Owns the measurement of a worker's memory: ten times the rows in one task, each size in a Spark of its own.

python -m tests.bench.memory ROWS      one size; prints one line of JSON
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from typing import Any

import batch_infer as bi
from tests.bench import processes, report
from tests.bench.nginx import endpoint
from tests.bench.sessions import local_session, prompts

ROWS = 300_000
FEWER = 10
IN_FLIGHT = 64
SLOTS = 2


def measure(options: argparse.Namespace) -> None:
    rows = options.rows or ROWS
    sizes = (rows // FEWER, rows)
    report.begin("memory", f"one task, {sizes[0]:,} and {sizes[1]:,} rows, {IN_FLIGHT} in flight, no latency")
    runs = [_in_a_process(size) for size in sizes]
    ratio = runs[1]["peak_mb"] / runs[0]["peak_mb"]
    report.table(("rows", "worker's peak MB", "rows/s"), [(r["rows"], r["peak_mb"], r["rows_per_s"]) for r in runs])
    print(f"   {FEWER} times the rows need {ratio:.2f} times the memory (the Python worker's VmHWM after its task).")
    report.result("memory", rows=[r["rows"] for r in runs], peak_mb=[round(r["peak_mb"], 1) for r in runs], ratio=ratio)


def _in_a_process(rows: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.bench.memory", str(rows)]
    lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    figures: dict[str, Any] = json.loads(lines[-1])
    return figures


def main() -> None:
    rows = int(sys.argv[1])
    with tempfile.TemporaryDirectory() as scratch, endpoint(scratch, 0) as server:
        spark = local_session(scratch, SLOTS)
        bi.register_endpoint("bench", base_url=server.base_url, model="m", max_concurrency=IN_FLIGHT * SLOTS)
        started = time.monotonic()
        frame = prompts(spark, rows, 1).withColumn("reply", bi.ai_query("bench", "prompt", details=True))
        frame.write.mode("overwrite").parquet(f"{scratch}/out")
        seconds = time.monotonic() - started
        peak_mb = processes.peak_worker_mb()  # the worker idles on for a minute before Spark ends it
        spark.stop()
    print(json.dumps({"rows": rows, "rows_per_s": rows / seconds, "peak_mb": peak_mb}))


if __name__ == "__main__":
    main()

"""Owns the measurement of what `details => true` costs: the same rows with it on and off, in turns."""

from __future__ import annotations

import argparse
import tempfile

import batch_infer as bi
from tests.bench import report
from tests.bench.nginx import endpoint
from tests.bench.sessions import local_session, prompts
from tests.bench.throughput import IN_FLIGHT, LATENCY_MS, LEDGER_SETTING, ROWS, written


def measure(options: argparse.Namespace) -> None:
    rows = options.rows or ROWS
    pairs = options.pairs or 5
    latency_ms = LATENCY_MS if options.latency_ms is None else options.latency_ms
    report.begin("details", f"details on and off, {rows:,} rows, {latency_ms:g} ms, {pairs} pairs, no ledger")
    runs = []
    with tempfile.TemporaryDirectory() as scratch, endpoint(scratch, latency_ms) as server:
        spark = local_session(scratch)
        spark.conf.set(LEDGER_SETTING, "off")
        bi.register_endpoint("bench", base_url=server.base_url, model="m", max_concurrency=IN_FLIGHT)

        def run(details: bool, count: int) -> dict[str, float]:
            frame = prompts(spark, count, 2).withColumn("reply", bi.ai_query("bench", "prompt", details=details))
            return written(frame, count, scratch, server.pid)

        run(True, 1_000), run(False, 1_000)  # warm
        for pair in range(pairs):
            order = (True, False) if pair % 2 else (False, True)
            runs.append({("on" if details else "off"): run(details, rows) for details in order})
        spark.stop()
    ratio = report.middle([pair["on"]["rows_per_s"] / pair["off"]["rows_per_s"] for pair in runs])
    cpu = {side: report.middle([1000 * p[side]["cpu_s"] / rows for p in runs]) for side in ("on", "off")}
    rate = {side: report.middle([p[side]["rows_per_s"] for p in runs]) for side in ("on", "off")}
    report.table(
        ("details", "rows/s", "Python CPU s / 1,000 rows"), [(side, rate[side], cpu[side]) for side in ("on", "off")]
    )
    print(f"   On is {ratio:.3f} of off (the median of the pairs' ratios).")
    report.result(
        "details", rows=rows, latency_ms=latency_ms, pairs=pairs, ratio=ratio, on=rate["on"], off=rate["off"],
        on_cpu_s_per_1000_rows=cpu["on"], off_cpu_s_per_1000_rows=cpu["off"],
    )  # fmt: skip

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
    report.on_and_off("details", "details", runs, rows, latency_ms=latency_ms)

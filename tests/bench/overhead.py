"""Owns the measurement of what the ledger costs: the same rows with it on and off, in turns."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import batch_infer as bi
from tests.bench import report
from tests.bench.nginx import endpoint
from tests.bench.sessions import local_session, prompts
from tests.bench.throughput import IN_FLIGHT, LATENCY_MS, ROWS, written

SETTING = "spark.batch_infer.ledger"


def measure(options: argparse.Namespace) -> None:
    rows = options.rows or ROWS
    pairs = options.pairs or 5
    latency_ms = LATENCY_MS if options.latency_ms is None else options.latency_ms
    report.begin("overhead", f"{SETTING} on and off, {rows:,} rows, {latency_ms:g} ms, {pairs} pairs")
    runs = []
    with tempfile.TemporaryDirectory() as scratch, endpoint(scratch, latency_ms) as server:
        spark = local_session(scratch)
        bi.register_endpoint("bench", base_url=server.base_url, model="m", max_concurrency=IN_FLIGHT)

        def run(ledger: str, count: int) -> dict[str, float]:
            spark.conf.set(SETTING, ledger)
            frame = prompts(spark, count, 2).withColumn("reply", bi.ai_query("bench", "prompt"))
            return written(frame, count, scratch, server.pid)

        warm = Path(scratch) / "warm"
        run(str(warm), 1_000)
        if not any(warm.rglob("*")):
            spark.stop()
            sys.exit(f"This version keeps no ledger: with {SETTING} set, nothing was written. Nothing to measure.")
        run("off", 1_000)
        for pair in range(pairs):
            fresh = f"{scratch}/ledger-{pair}"  # an empty one, so that every row is asked
            order = (fresh, "off") if pair % 2 else ("off", fresh)
            done = {("off" if ledger == "off" else "on"): run(ledger, rows) for ledger in order}
            runs.append(done)
        spark.stop()
    report.on_and_off("overhead", "ledger", runs, rows, latency_ms=latency_ms)

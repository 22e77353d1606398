"""Owns the measurement of going on: a job over a ledger that has all replies but one in a hundred.

The ledger is filled by the product's own writer, as worker processes fill it, and then knows its keys as after any job.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from pyspark.sql import functions as F  # noqa: N812 - Spark's own convention

import batch_infer as bi
from batch_infer.adapters.ledger import Ledger, LedgerStore, LedgerWriter
from batch_infer.contract.endpoint import Endpoint
from batch_infer.contract.reply import Outcome, Reply, Usage
from batch_infer.contract.request import CallIdentity, Request
from tests.bench import processes, report
from tests.bench.nginx import endpoint
from tests.bench.sessions import local_session

ROWS = 2_000_000
ONE_IN = 100
LOGS = 40
USAGE = Usage(prompt_tokens=9, completion_tokens=40, total_tokens=49)
ANSWER = "The customer reports a delayed delivery and asks for a refund; the tone is polite but firm."


def measure(options: argparse.Namespace) -> None:
    rows = options.rows or ROWS
    report.begin("resume", f"{rows:,} distinct rows, of which the ledger has all but one in {ONE_IN}")
    with tempfile.TemporaryDirectory() as scratch, endpoint(scratch, 0) as server:
        bench = bi.register_endpoint("bench", base_url=server.base_url, model="m")
        path = f"{scratch}/ledger"
        started = time.monotonic()
        with ProcessPoolExecutor(2) as pool:
            list(pool.map(fill, [(path, bench, part, rows) for part in range(LOGS)]))
        filled_s = time.monotonic() - started
        started = time.monotonic()
        Ledger.open(path).compact_index()
        indexed_s = time.monotonic() - started
        spark = local_session(scratch)
        peak = Peak()
        frame = spark.range(0, rows, 1, 8).withColumn("body", F.concat(F.lit("ticket "), F.col("id").cast("string")))
        before, started = processes.cpu({server.pid}), time.monotonic()
        job = {"endpoint": "bench", "prompt": "{body}", "ledger": path, "progress": False}
        summary = bi.run(frame, output=f"{scratch}/out", **job)
        seconds = time.monotonic() - started
        used = processes.cpu({server.pid}).since(before)
        peak_mb = peak.end()
        spark.stop()
        size_mb = sum(f.stat().st_size for f in Path(path).rglob("*") if f.is_file()) / 1e6
    missing = -(-rows // ONE_IN)
    if (summary.asked, summary.succeeded) != (missing, rows):
        sys.exit(f"asked {summary.asked:,} and not {missing:,}; {summary.succeeded:,} of {rows:,} succeeded")
    report.table(
        ("rows", "asked", "resume s", "rows/s", "Python CPU s", "JVM CPU s", "worker's peak MB", "ledger MB"),
        [(rows, summary.asked, seconds, rows / seconds, used.python_s, used.jvm_s, peak_mb, size_mb)],
    )
    print(f"   Filling the ledger took {filled_s:.0f} s and indexing its keys {indexed_s:.0f} s, before the clock ran.")
    report.result(
        "resume", rows=rows, asked=summary.asked, seconds=seconds, python_cpu_s=used.python_s, jvm_cpu_s=used.jvm_s,
        peak_worker_mb=peak_mb, ledger_mb=size_mb, index_s=indexed_s,
    )  # fmt: skip


def fill(task: tuple[str, Endpoint, int, int]) -> None:
    """Records the replies to one part of the rows, all but one in a hundred."""
    path, bench, part, rows = task
    identity = CallIdentity(endpoint=bench.identity, task=bench.task, parameters={}, response_format=None)
    writer = LedgerWriter(path, f"fill-{part}")
    store = LedgerStore(Ledger.open(path), writer, endpoint=bench.name, model="m")
    for number in range(part, rows, LOGS):
        if number % ONE_IN:
            prompt = f"ticket {number}"
            request = Request(key=identity.key(prompt), content=prompt)
            store.intend([request])
            reply = Reply(text=ANSWER, finish_reason="stop", model="m", usage=USAGE)
            store.record(request, Outcome(reply=reply, usage=USAGE, attempts=1, latency_ms=800))
    store.close()


class Peak:
    """The largest memory that any Python worker has had; looked at twice a second, because workers come and go."""

    def __init__(self) -> None:
        self._mb = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._over.wait(0.5):
            self._mb = max(self._mb, processes.peak_worker_mb())

    def end(self) -> float:
        self._over.set()
        self._thread.join()
        return self._mb

"""A Python worker that dies: its task is run again, and pays only for what the dead worker had in flight."""

from __future__ import annotations

import os
import signal
from collections import Counter

import pyarrow.parquet as pq
import pytest

from batch_infer.adapters.ledger import Ledger
from tests.support.processes import asking_workers

pytestmark = pytest.mark.spark

ROWS = 2_000
IN_FLIGHT = 16


def test_a_worker_killed_at_half_costs_at_most_what_it_had_in_flight_and_says_so(
    start_driver, start_endpoint, tmp_path
):
    endpoint = start_endpoint(latency_s=0.05)
    driver = start_driver(endpoint, "local[2,4]", fields={"max_concurrency": IN_FLIGHT})
    driver.submit(ROWS, output=str(tmp_path / "out"))
    driver.wait_until_asked(endpoint, ROWS // 2)
    worker = asking_workers(driver.pid, endpoint.base_url)[0]
    os.kill(worker, signal.SIGKILL)
    summary = driver.result(120)

    calls, billed = Counter(endpoint.calls_by_prompt()), Counter(endpoint.billed_by_prompt())
    assert "error" not in summary, summary
    assert (summary["rows"], summary["succeeded"]) == (ROWS, ROWS)
    keys = keys_by_prompt(tmp_path / "out")
    assert len(keys) == ROWS == len(calls)
    asked_twice = {keys[prompt] for prompt, count in calls.items() if count > 1}
    billed_twice = {keys[prompt] for prompt, count in billed.items() if count > 1}
    audit = Ledger.open(tmp_path / "out.ledger").audit()
    reported = {*audit.in_doubt_keys(), *audit.asked_again_keys()}
    assert billed_twice <= asked_twice <= reported
    assert len(reported) <= IN_FLIGHT
    assert max(calls.values()) <= 2
    assert summary["in_doubt"] == len(reported)
    assert audit.billed_again == 0
    print(f"{len(billed_twice)} billed twice, {len(asked_twice)} asked twice, {len(reported)} reported in doubt")


def keys_by_prompt(path):
    table = pq.read_table(path, columns=["body", "request_key"])
    return dict(zip(table["body"].to_pylist(), table["request_key"].to_pylist(), strict=True))

"""An executor that dies on a real cluster: what it had recorded is found by the one that takes its tasks over."""

from __future__ import annotations

import json
from collections import Counter

import pyarrow.parquet as pq
import pytest

from batch_infer.adapters.ledger import Ledger
from tests.support.processes import asking_workers

pytestmark = [pytest.mark.spark, pytest.mark.timeout(600)]

ROWS = 600
IN_FLIGHT = 8
FIELDS = {"max_concurrency": IN_FLIGHT}


@pytest.fixture
def endpoint(start_endpoint):
    return start_endpoint(latency_s=0.05)


def kill_busiest_executor(cluster, endpoint):
    """SIGKILL to the executor whose Python worker has most requests under way."""
    busy = {pid: asking_workers(pid, endpoint.base_url) for pid in cluster.executors()}
    cluster.kill_executor(max(busy, key=lambda pid: len(busy[pid])))


def account(endpoint, ledger):
    """Checks what holds after every kill; the prompts that were asked twice."""
    calls, billed = Counter(endpoint.calls_by_prompt()), Counter(endpoint.billed_by_prompt())
    audit = Ledger.open(ledger).audit()
    reported = {*audit.in_doubt_keys(), *audit.asked_again_keys()}
    asked = {row["prompt"]: row["request_key"] for row in requests_of(ledger)}
    asked_twice = {asked[prompt] for prompt, count in calls.items() if count > 1}
    billed_twice = {asked[prompt] for prompt, count in billed.items() if count > 1}
    assert billed_twice <= asked_twice <= reported
    assert max(calls.values()) <= 2
    print(f"{len(billed_twice)} billed twice, {len(asked_twice)} asked twice, {len(reported)} reported in doubt")
    return asked_twice


def requests_of(ledger):
    for row in Ledger.open(ledger).to_arrow().to_pylist():
        yield {"prompt": json.loads(row["request"])["prompt"], "request_key": row["request_key"]}


def test_a_job_whose_executor_dies_pays_only_for_what_that_had_in_flight(
    start_driver, standalone_cluster, endpoint, tmp_path
):
    driver = start_driver(endpoint, standalone_cluster.url, conf=standalone_cluster.conf, fields=FIELDS)
    driver.submit(ROWS, output=str(tmp_path / "out"))
    driver.wait_until_asked(endpoint, ROWS // 2)
    kill_busiest_executor(standalone_cluster, endpoint)
    summary = driver.result(180)
    assert "error" not in summary, summary
    assert (summary["rows"], summary["succeeded"]) == (ROWS, ROWS)
    assert len(set(pq.read_table(tmp_path / "out", columns=["id"])["id"].to_pylist())) == ROWS
    asked_twice = account(endpoint, tmp_path / "out.ledger")
    assert len(asked_twice) <= summary["in_doubt"] <= IN_FLIGHT


@pytest.mark.parametrize("requests", [pytest.param(220, id="map stage"), pytest.param(900, id="after the shuffle")])
def test_a_column_whose_executor_dies_pays_only_for_what_that_had_in_flight(
    start_driver, standalone_cluster, endpoint, tmp_path, requests
):
    ledger = tmp_path / "ledger"
    conf = {**standalone_cluster.conf, "spark.batch_infer.ledger": str(ledger)}
    driver = start_driver(endpoint, standalone_cluster.url, conf=conf, fields=FIELDS)
    driver.submit(ROWS, columns_to=tmp_path / "out")
    driver.wait_until_asked(endpoint, requests)
    kill_busiest_executor(standalone_cluster, endpoint)
    done = driver.result(180)
    assert "error" not in done, done
    rows = pq.read_table(tmp_path / "out").to_pylist()
    assert {row["id"] for row in rows} == set(range(ROWS))
    assert len(rows) == ROWS
    assert all(row["second"] == f"echo: 2: echo: {row['body']}" for row in rows)
    assert len(endpoint.calls_by_prompt()) == 2 * ROWS
    assert len(account(endpoint, ledger)) <= IN_FLIGHT

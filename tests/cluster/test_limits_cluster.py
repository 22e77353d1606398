"""One budget for the workers of a real cluster: nobody's share is lost with an executor that dies."""

from __future__ import annotations

import threading
import time
from itertools import pairwise

import pytest

from tests.support.processes import asking_workers

pytestmark = [pytest.mark.spark, pytest.mark.timeout(600)]

RPM = 1800
PER_S = RPM / 60
BURST = 30


def most_in_a_window(arrivals, window_s=60.0):
    most = start = 0
    for end, at in enumerate(arrivals):
        while arrivals[start] <= at - window_s:
            start += 1
        most = max(most, end - start + 1)
    return most


def test_when_an_executor_dies_the_rest_has_the_whole_budget_within_five_seconds(
    start_driver, standalone_cluster, start_endpoint, tmp_path
):
    endpoint = start_endpoint(latency_s=0.2)
    driver = start_driver(
        endpoint, standalone_cluster.url, conf=standalone_cluster.conf, fields={"requests_per_minute": RPM}
    )
    rows = 2400
    # Without a shuffle, an executor that dies takes no other stage's output with it, which Spark would make anew.
    driver.submit_query("SELECT * FROM asked", action="write", rows=rows, parts=8, ledger=tmp_path / "ledger")
    driver.wait_until_asked(endpoint, 600)
    busy = {pid: asking_workers(pid, endpoint.base_url) for pid in standalone_cluster.executors()}
    assert sum(bool(workers) for workers in busy.values()) == 2, "both executors ask"
    standalone_cluster.kill_executor(max(busy, key=lambda pid: len(busy[pid])))
    killed_at = time.monotonic()
    assert driver.result(180) == {}
    assert len(endpoint.billed_by_prompt()) == rows

    arrivals = endpoint.arrivals()
    per_s = [sum(killed_at + s <= at < killed_at + s + 1 for at in arrivals) for s in range(-5, 30)]
    print(f"\nrequests a second from 5 s before the kill: {per_s}; most in a minute: {most_in_a_window(arrivals)}")
    later = sum(killed_at + 5 <= at < killed_at + 20 for at in arrivals)
    assert later >= 0.95 * 15 * PER_S
    assert most_in_a_window(arrivals) <= RPM + BURST
    assert most_in_a_window(arrivals, 10.0) <= RPM / 6 + BURST


def test_a_key_that_is_revoked_in_mid_run_stops_both_executors_within_two_seconds(
    start_driver, standalone_cluster, start_endpoint, tmp_path
):
    endpoint = start_endpoint(latency_s=0.2)
    driver = start_driver(
        endpoint, standalone_cluster.url, conf=standalone_cluster.conf, fields={"max_concurrency": 16}
    )
    driver.submit(4000, output=str(tmp_path / "out"))
    driver.wait_until_asked(endpoint, 200)
    revoked_at, seen = time.monotonic(), endpoint.stats()["requests"]
    endpoint.configure(unauthorized_after=1)
    summary = driver.result(60)
    assert "HTTP 401" in summary["error"]
    late = [at - revoked_at for at in endpoint.arrivals() if at > revoked_at]
    print(f"\n{len(late)} requests after the key was revoked, the last {max(late, default=0):.2f} s after")
    assert max(late, default=0) <= 2
    assert endpoint.stats()["requests"] - seen <= 3 * 16


def test_max_concurrency_is_one_figure_for_the_whole_cluster(
    start_driver, standalone_cluster, start_endpoint, tmp_path
):
    endpoint = start_endpoint(latency_s=0.1)
    driver = start_driver(endpoint, standalone_cluster.url, conf=standalone_cluster.conf, fields={"max_concurrency": 5})
    watching, seen = threading.Event(), []

    def watch():
        while not watching.wait(0.2):
            seen.append(endpoint.stats()["in_flight"])

    thread = threading.Thread(target=watch)
    thread.start()
    summary = driver.run(300, output=str(tmp_path / "out"))
    watching.set()
    thread.join()
    assert summary["succeeded"] == 300
    assert endpoint.stats()["peak_in_flight"] <= 5
    assert max(seen) == 5, "what one executor cannot use, the other has"
    arrivals = endpoint.arrivals()
    assert max(b - a for a, b in pairwise(arrivals[20:-20])) < 5

"""A driver that dies, or is interrupted: the same command again finishes the job, and pays for what is missing."""

from __future__ import annotations

import signal
from collections import Counter

import pyarrow.parquet as pq
import pytest

from batch_infer.adapters.ledger import Ledger
from batch_infer.testing import Rule

pytestmark = pytest.mark.spark

ROWS = 400
IN_FLIGHT = 8
FIELDS = {"max_concurrency": IN_FLIGHT}


@pytest.fixture
def endpoint(start_endpoint):
    """Answers 94% of the rows, and holds every request after that: what is in flight is known."""
    return start_endpoint(rules=[Rule(times=ROWS * 94 // 100), Rule(hold=True)])


def table(path):
    return pq.read_table(path).sort_by("id")


def wait_for_94_percent(driver, endpoint):
    """Until 94% are answered, and the requests of a whole task are held. (The other task may have nothing left.)"""
    driver.wait_until_asked(endpoint, ROWS * 94 // 100 + IN_FLIGHT // 2)


def in_flight_at_the_end(endpoint):
    """How many requests were in flight when their sender went away."""
    return endpoint.wait_until("in_flight", at_most=0, timeout_s=20)["abandoned"]


def test_a_driver_killed_at_94_percent_pays_for_the_rest_alone(start_driver, start_endpoint, endpoint, tmp_path):
    options = {"output": str(tmp_path / "out")}
    driver = start_driver(endpoint, fields=FIELDS)
    driver.submit(ROWS, **options)
    wait_for_94_percent(driver, endpoint)
    driver.kill()
    in_flight = in_flight_at_the_end(endpoint)
    assert 0 < in_flight <= IN_FLIGHT
    assert not (tmp_path / "out").exists()
    endpoint.configure(rules=[])
    before = set(endpoint.billed_by_prompt())

    again = start_driver(endpoint, fields=FIELDS)
    summary = again.run(ROWS, **options)
    calls = Counter(endpoint.calls_by_prompt())
    assert calls.total() <= ROWS + in_flight
    asked_twice = {prompt for prompt, count in calls.items() if count > 1}
    assert len(asked_twice) <= in_flight
    assert not asked_twice & before, "a reply that was billed and kept is not asked for again"
    assert (summary["rows"], summary["succeeded"], summary["asked"]) == (ROWS, ROWS, ROWS - len(before))
    assert len(asked_twice) <= summary["in_doubt"] <= in_flight

    undisturbed = start_endpoint()
    elsewhere = start_driver(undisturbed, fields=FIELDS)
    elsewhere.run(ROWS, output=str(tmp_path / "undisturbed"))
    columns = ["id", "body", "result", "error", "usage", "finish_reason", "model"]
    found, expected = table(tmp_path / "out"), table(tmp_path / "undisturbed")
    assert found.num_rows == len(set(found["id"].to_pylist())) == ROWS
    assert found.select(columns).equals(expected.select(columns))
    print(f"{calls.total()} calls for {ROWS} rows; {in_flight} were in flight, {len(asked_twice)} asked twice")


def test_an_interrupted_driver_keeps_what_is_paid_and_says_how_to_go_on(start_driver, endpoint, tmp_path):
    options = {"output": str(tmp_path / "out")}
    driver = start_driver(endpoint, fields=FIELDS)
    driver.submit(ROWS, **options)
    wait_for_94_percent(driver, endpoint)
    driver.process.send_signal(signal.SIGINT)
    assert driver.result(60) is None, "the process has ended"
    assert driver.process.wait(30) != 0
    said = driver.errors.read_text()
    assert f"Interrupted. Every reply that arrived is kept in the ledger at {tmp_path / 'out'}.ledger" in said
    assert "Run the same command again, or with mode='resume', to continue: what is kept is not paid for again." in said
    in_flight = in_flight_at_the_end(endpoint)
    audit = Ledger.open(tmp_path / "out.ledger").audit()
    assert audit.answered == ROWS * 94 // 100
    endpoint.configure(rules=[])
    summary = start_driver(endpoint, fields=FIELDS).run(ROWS, mode="resume", **options)
    assert (summary["rows"], summary["succeeded"], summary["asked"]) == (ROWS, ROWS, ROWS - audit.answered)
    assert Counter(endpoint.calls_by_prompt()).total() <= ROWS + in_flight

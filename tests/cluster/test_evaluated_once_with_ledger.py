"""What Spark evaluates twice is paid for once: queries at local[4] with the ledger on, counted at the endpoint."""

from __future__ import annotations

import time
from typing import NamedTuple

import pytest

pytestmark = pytest.mark.spark

ONE = "SELECT ai_query('counted', body) result FROM rows"
CALL = "ai_query('counted', body, details => true)"


class Case(NamedTuple):
    """A query, and how many distinct inputs its optimised plan evaluates."""

    query: str
    evaluated: int
    action: str = "collect"
    parts: int = 2
    rows: int = 100
    side_by_side: bool = False
    """Two tasks may ask the same at the same moment: then neither finds the other's reply."""


CASES = [
    Case("SELECT r.result FROM asked", 100),
    Case("SELECT r.usage FROM asked", 100),
    Case("SELECT r.* FROM asked", 100),
    Case(f"SELECT {CALL}.result, {CALL}.usage FROM rows", 100),
    Case("SELECT r.result FROM asked WHERE r.error IS NULL", 100),
    Case("SELECT r FROM asked WHERE r IS NOT NULL", 100),
    Case("SELECT r.result FROM asked WHERE id < 10", 10),
    Case("SELECT r.result FROM asked JOIN (SELECT id FROM rows WHERE id < 5) USING (id)", 5),
    Case("SELECT ai_query('counted', body) FROM (SELECT * FROM rows LIMIT 10)", 10, "write", 10, 200),
    Case(f"{ONE} LIMIT 10", 100, "write", 10, 200),
    Case("SELECT CASE WHEN id < 10 THEN ai_query('counted', body) END FROM rows", 100),
    Case("SELECT * FROM asked ORDER BY r.result", 100),
    Case(ONE, 100, "repartitionByRange"),
    Case("SELECT * FROM asked UNION ALL SELECT * FROM asked", 100, side_by_side=True),
    Case("SELECT a.r.result FROM asked a JOIN asked b ON a.r.result = b.r.result", 100, side_by_side=True),
    Case("SELECT r.result FROM asked WHERE r.result IN (SELECT r.result FROM asked)", 100, side_by_side=True),
    Case("SELECT * FROM (SELECT id, r.model m, r.result t FROM asked) PIVOT (max(t) FOR m IN ('m'))", 100),
    Case("SELECT * FROM asked", 0, "count"),
    Case(ONE, 100, "cache and 3 actions"),
    Case(ONE, 100, "checkpoint"),
    Case(ONE, 100, "localCheckpoint"),
    Case(ONE, 100, "checkpoint(False)"),
]


def test_calls_are_the_distinct_inputs_that_the_plan_evaluates(start_driver, start_endpoint, tmp_path):
    endpoint = start_endpoint()
    driver = start_driver(endpoint, "local[4]")
    wrong = []
    for number, case in enumerate(CASES):
        endpoint.reset()
        where = tmp_path / f"ledger-{number}"
        started = time.monotonic()
        done = driver.query(case.query, action=case.action, rows=case.rows, parts=case.parts, ledger=where)
        calls = endpoint.calls_by_prompt()
        total, distinct = sum(calls.values()), len(calls)
        seconds = time.monotonic() - started
        print(f"{total:>4} calls, {distinct:>4} distinct, {case.evaluated:>4} evaluated", end="   ")
        print(f"{case.query}   {case.action}, {seconds:.1f} s")
        allowed = 2 * case.evaluated if case.side_by_side else case.evaluated
        if "error" in done or distinct != case.evaluated or total > allowed:
            wrong.append((case, total, distinct, done))
    assert not wrong

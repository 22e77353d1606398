"""Round after round of a job in which something is killed at a random moment; the same invariants after each."""

from __future__ import annotations

import os
import random
import signal
from collections import Counter

import pyarrow.parquet as pq
import pytest

from batch_infer.adapters.ledger import Ledger
from tests.support.processes import asking_workers

pytestmark = [pytest.mark.spark, pytest.mark.timeout(1800)]

ROWS, DISTINCT = 300, 200
IN_FLIGHT = 8
SEED = 20


class Loop:
    """Jobs over new prompts on one ledger; each round kills one process, or the driver with all it has."""

    def __init__(self, start_driver, endpoint, folder, seed):
        self.start_driver, self.endpoint, self.folder = start_driver, endpoint, folder
        self.random = random.Random(seed)
        self.driver = None
        self.ledger = folder / "ledger"
        self.doubtful = 0

    def round(self, number):
        victim = self.random.choice(["worker", "worker", "driver"])
        at = self.random.randrange(1, DISTINCT - IN_FLIGHT)
        options = {"output": str(self.folder / f"out-{number}"), "ledger": str(self.ledger)}
        job = {"distinct": DISTINCT, "word": f"round {number}:", **options}
        self.endpoint.reset()
        driver = self._driver()
        driver.submit(ROWS, **job)
        driver.wait_until_asked(self.endpoint, at)
        if victim == "driver":
            driver.kill()
            self.driver = None
            summary = self._driver().run(ROWS, **job)
        else:
            for worker in asking_workers(driver.pid, self.endpoint.base_url)[:1]:
                os.kill(worker, signal.SIGKILL)
            summary = driver.result()
        self._check(number, victim, summary, options["output"])

    def _driver(self):
        if self.driver is None:
            self.driver = self.start_driver(self.endpoint, "local[2,4]", fields={"max_concurrency": IN_FLIGHT})
        return self.driver

    def _check(self, number, victim, summary, output):
        table = pq.read_table(output, columns=["id", "body", "result", "request_key"])
        assert "error" not in summary, summary
        assert sorted(table["id"].to_pylist()) == list(range(ROWS)), "rows in = rows out"
        assert all(row["result"] == f"echo: {row['body']}" for row in table.to_pylist())
        keys = dict(zip(table["body"].to_pylist(), table["request_key"].to_pylist(), strict=True))
        ledger = Ledger.open(self.ledger)
        assert set(ledger.find(list(keys.values()))) == set(keys.values()), "ledger ⊇ output"
        audit = ledger.audit()
        reported = {*audit.in_doubt_keys(), *audit.asked_again_keys()}
        new, self.doubtful = len(reported) - self.doubtful, len(reported)
        calls, billed = Counter(self.endpoint.calls_by_prompt()), Counter(self.endpoint.billed_by_prompt())
        assert len(calls) == len(billed) == DISTINCT
        assert {keys[prompt] for prompt, count in calls.items() if count > 1} <= reported
        assert billed.total() <= calls.total() <= DISTINCT + new
        assert new <= IN_FLIGHT
        assert summary["in_doubt"] == len(reported)
        print(f"round {number}: {victim} killed, {billed.total() - DISTINCT} billed twice, {new} reported in doubt")


@pytest.mark.parametrize("rounds", [2, pytest.param(20, marks=pytest.mark.long)])
def test_after_every_kill_the_output_is_complete_and_what_was_paid_twice_is_reported(
    start_driver, start_endpoint, tmp_path, rounds
):
    loop = Loop(start_driver, start_endpoint(latency_s=0.1), tmp_path, SEED)
    for number in range(rounds):
        loop.round(number)

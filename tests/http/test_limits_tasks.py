"""Tasks as workers run them, against a real endpoint and a real driver's service, without Spark around them."""

from __future__ import annotations

import json
import logging
import threading
import time

import pytest

from batch_infer.adapters.coordinator import DriverService
from batch_infer.adapters.coordinator import grants as leases
from batch_infer.adapters.providers.registry import build_endpoint
from batch_infer.adapters.worker.task import answer
from batch_infer.contract.plan import CallPlan
from batch_infer.contract.progress import TaskId
from batch_infer.contract.request import Request
from batch_infer.engine.batches import Batch


@pytest.fixture
def service():
    with DriverService("127.0.0.1") as running:
        yield running


class Tasks:
    """Runs tasks of one call, each on a thread, as a worker's own would."""

    def __init__(self, service, url, *, slots=2, **fields):
        endpoint = build_endpoint("e", {"base_url": url, "model": "m", **fields})
        self.call = service.open_call("call-1", budget=service.budget(endpoint)) if service is not None else None
        self.plan = CallPlan(
            call_id="call-1",
            endpoint=endpoint,
            parameters=json.dumps({"max_tokens": 16}),
            response_format=None,
            result_type="string",
            fail_on_error=False,
            slots=slots,
            service=service.address if service is not None else None,
        )
        self.outcomes = []
        self.threads = []

    def start(self, partition, rows):
        def work():
            requests = [Request(key=f"{partition}-{i}", content=f"p {i}", prompt_tokens=5) for i in range(rows)]
            batches = (Batch(requests[at : at + 100]) for at in range(0, rows, 100))
            for done in answer(self.plan, TaskId(1, partition, partition), batches):
                self.outcomes += done.outcomes

        self.threads.append(threading.Thread(target=work))
        self.threads[-1].start()

    def join(self):
        for thread in self.threads:
            thread.join(60)
            assert not thread.is_alive()
        return self.outcomes


def test_a_rate_is_shared_by_a_long_and_a_short_task_and_no_request_is_refused(endpoint_factory, service):
    endpoint = endpoint_factory(requests_per_minute=3000, burst=50, latency_s=0.1)
    tasks = Tasks(service, endpoint.base_url, requests_per_minute=3000)
    tasks.start(0, 250)
    tasks.start(1, 20)
    assert all(outcome.failure is None for outcome in tasks.join())
    assert endpoint.stats()["status_counts"] == {"200": 270}
    totals = tasks.call.progress().totals()
    assert (totals.throttled, totals.unleased_tasks) == (0, 0)
    assert totals.waiting_s > 0


def test_when_the_driver_goes_away_a_task_goes_on_with_its_share_and_says_so(endpoint_factory, service, caplog):
    caplog.set_level(logging.WARNING)
    leases._said.clear()
    endpoint = endpoint_factory(latency_s=0.01)
    tasks = Tasks(service, endpoint.base_url, slots=4, requests_per_minute=2400)  # 40 a second; 10 a second alone
    tasks.start(0, 130)
    endpoint.wait_until("requests", at_least=60, timeout_s=20)
    service.close()
    gone_at = time.monotonic()
    outcomes = tasks.join()
    assert len(outcomes) == 130
    assert all(outcome.failure is None for outcome in outcomes)
    arrivals = [at - gone_at for at in endpoint.arrivals()]
    assert sum(0 <= at < 3 for at in arrivals) <= 30, "what was granted, and nothing more, while that is good"
    later = [at for at in arrivals if at > 5]
    assert max(sum(start <= at < start + 1 for at in later) for start in later) <= 10 + 5
    assert "share of their own" in caplog.text


def test_without_a_driver_there_is_a_share_from_the_beginning(endpoint_factory):
    endpoint = endpoint_factory(latency_s=0.01)
    tasks = Tasks(None, endpoint.base_url, slots=4, requests_per_minute=2400)
    tasks.start(0, 30)
    assert len(tasks.join()) == 30
    arrivals = endpoint.arrivals()
    assert max(sum(start <= at < start + 1 for at in arrivals) for start in arrivals) <= 10 + 5


def test_a_halted_call_ends_well_with_what_it_has(endpoint_factory, service):
    endpoint = endpoint_factory(latency_s=0.1)
    tasks = Tasks(service, endpoint.base_url, max_concurrency=4)
    tasks.start(0, 400)
    endpoint.wait_until("requests", at_least=20, timeout_s=20)
    tasks.call.halt("enough")
    outcomes = tasks.join()
    kinds = [outcome.failure.kind if outcome.failure else None for outcome in outcomes]
    sent = endpoint.stats()["requests"]
    assert sent < 100
    assert kinds == [None] * sent + ["not_sent"] * (400 - sent)
    tasks.start(1, 50)
    assert len(tasks.join()) == 450
    assert endpoint.stats()["requests"] == sent, "a task that begins later sends nothing"

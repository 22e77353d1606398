"""Where a task's grants come from: the driver while it answers, a share of its own while it does not. Never both."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from batch_infer.adapters.coordinator import grants as leases_module
from batch_infer.adapters.coordinator.grants import Leases
from batch_infer.adapters.providers.registry import build_endpoint
from batch_infer.contract.limits import Amount, Grant
from batch_infer.engine.ports import Ending
from batch_infer.engine.tally import Tally
from tests.support.virtual_clock import VirtualClock, run_virtually

SLOTS = 4
PER_S = 10.0


class LoopStandIn:
    """The task's loop, which is the only one here."""

    def call_soon_threadsafe(self, call, *arguments):
        call(*arguments)


def using(scenario, **fields):
    """Requests as many as are admitted, answered after 10 ms; gives when each was sent."""
    endpoint = build_endpoint("e", {"base_url": "http://localhost/v1", "model": "m", **fields})

    async def main():
        clock, tally, sent = VirtualClock(), Tally(), []
        leases = Leases(endpoint, SLOTS, clock, LoopStandIn(), tally)

        async def ask():
            while True:
                permit = await leases.permits.acquire(Amount(1))
                sent.append(clock.now())
                await asyncio.sleep(0.01)
                leases.permits.settle(permit, Ending.ACCEPTED, used=Amount(1), latency_s=0.01)

        work = [asyncio.ensure_future(each) for each in (leases.keep(), *(ask() for _ in range(8)))]
        await scenario(leases, clock)
        for task in work:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        return sent, tally

    return run_virtually(main())


async def lease(leases, clock, until_s, *, already=0.0):
    """The driver, which grants 10 requests a second."""
    begun = clock.now()
    while clock.now() < until_s:
        leases.take(Grant(requests=already + (clock.now() - begun) * PER_S, max_in_flight=8, valid_s=5.0))
        await clock.sleep(0.25)


def between(sent, start, end):
    return sum(start <= at < end for at in sent)


@pytest.fixture(autouse=True)
def nothing_said_yet():
    leases_module._said.clear()


def test_without_a_driver_a_task_keeps_to_limit_by_slots_and_says_so_once(caplog):
    async def alone(leases, clock):
        await clock.sleep(60)

    sent, tally = using(alone, requests_per_minute=600)
    using(alone, requests_per_minute=600)
    assert 60 * PER_S / SLOTS * 0.9 <= len(sent) <= 60 * PER_S / SLOTS * 1.05
    assert tally.unleased_tasks == 1
    assert caplog.text.count("4 task slots") == 1


def test_while_the_driver_answers_its_grants_alone_count(caplog):
    async def leased(leases, clock):
        await lease(leases, clock, 20)

    sent, tally = using(leased, requests_per_minute=600)
    assert 20 * PER_S * 0.9 <= len(sent) <= 20 * PER_S
    assert tally.unleased_tasks == 0
    assert not caplog.text


def test_a_driver_that_falls_silent_is_followed_by_the_own_share_once_its_grant_is_void_and_comes_back():
    async def interrupted(leases, clock):
        await lease(leases, clock, 10)
        await clock.sleep(30)
        spent = leases.permits.standing().spent.requests
        await lease(leases, clock, 60, already=spent)

    sent, tally = using(interrupted, requests_per_minute=600)
    assert between(sent, 1, 10) == pytest.approx(9 * PER_S, abs=4)
    assert between(sent, 10.5, 14.9) <= 1, "the last grant is used up, and still good: nothing else is"
    assert between(sent, 16, 39) == pytest.approx(23 * PER_S / SLOTS, rel=0.15)
    assert between(sent, 41, 60) == pytest.approx(19 * PER_S, rel=0.1)
    assert tally.unleased_tasks == 1


def test_a_task_that_took_longer_to_open_than_its_first_grant_was_good_waits_for_the_next_one(caplog):
    endpoint = build_endpoint("e", {"base_url": "http://localhost/v1", "model": "m"})

    async def main(answers):
        clock, tally = VirtualClock(), Tally()
        leases = Leases(endpoint, SLOTS, clock, LoopStandIn(), tally)
        leases.take(Grant(max_in_flight=1, valid_s=4.0))
        await clock.sleep(60)  # a model server starts
        keeping = asyncio.ensure_future(leases.keep())
        await clock.sleep(0.01)
        if answers:
            await lease(leases, clock, 70)
        else:
            await clock.sleep(10)
        keeping.cancel()
        return tally.unleased_tasks, leases.permits.is_void()

    assert run_virtually(main(True)) == (0, False)
    assert not caplog.text
    assert run_virtually(main(False)) == (1, False)

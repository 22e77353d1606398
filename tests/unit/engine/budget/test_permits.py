"""A task's side of a shared budget, on virtual time: who is admitted when, and what is said about it."""

import asyncio
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batch_infer.contract.errors import RowRejected
from batch_infer.contract.limits import Amount, Grant, Limits
from batch_infer.engine.budget.permits import IN_FLIGHT_PER_TASK, MOST_IN_FLIGHT_PER_TASK, TaskPermits
from batch_infer.engine.ports import Ending, SystemClock
from tests.support.virtual_clock import VirtualClock, run_virtually

ONE = Amount(1)
OPEN = Grant(max_in_flight=100, valid_s=1000)


def virtual(scenario, limits=None, random=lambda: 0.5):
    """Runs `scenario(permits, clock, hurries)`; `hurries` grows with each call for an early message."""

    async def main():
        clock, hurries = VirtualClock(), []
        permits = TaskPermits(limits or Limits(), clock, random, lambda: hurries.append(clock.now()))
        return await scenario(permits, clock, hurries)

    return run_virtually(main())


def asking(permits, clock, admitted, *needs):
    """Asks for all at once; notes `(time, need)` of each that is admitted."""

    async def one(need):
        permit = await permits.acquire(need)
        admitted.append((round(clock.now(), 3), need.input_tokens or need.requests))
        return permit

    return [asyncio.ensure_future(one(need)) for need in needs]


async def end(tasks):
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


# Grants


def test_nothing_is_admitted_before_the_first_grant_which_is_hurried_for():
    async def scenario(permits, clock, hurries):
        assert permits.is_void()
        waiting = asyncio.ensure_future(permits.acquire(ONE))
        await clock.sleep(3)
        assert not waiting.done()
        assert hurries == [0]
        permits.take(OPEN)
        assert not permits.is_void()
        return await waiting

    assert virtual(scenario).waited_s == pytest.approx(3)


def test_nothing_is_admitted_after_a_grant_has_become_void():
    async def scenario(permits, clock, hurries):
        permits.take(Grant(max_in_flight=5, valid_s=4))
        await permits.acquire(ONE)
        await clock.sleep(4)
        assert permits.is_void()
        waiting = asyncio.ensure_future(permits.acquire(ONE))
        await clock.sleep(10)
        assert not waiting.done()
        permits.take(Grant(max_in_flight=5, valid_s=4))
        await waiting

    virtual(scenario)


def test_a_void_grant_is_returned_whole():
    async def scenario(permits, clock, hurries):
        permits.take(Grant(requests=10, max_in_flight=5, valid_s=4))
        await clock.sleep(5)
        return permits.standing().returned.requests

    assert virtual(scenario) == 10


def test_no_more_are_in_flight_than_granted():
    async def scenario(permits, clock, hurries):
        permits.take(Grant(max_in_flight=2, valid_s=100))
        admitted = []
        tasks = asking(permits, clock, admitted, *[ONE] * 5)
        await clock.sleep(1)
        assert len(admitted) == 2
        permits.settle(tasks[0].result(), Ending.ACCEPTED)
        await clock.sleep(1)
        assert len(admitted) == 3
        permits.take(Grant(max_in_flight=1, valid_s=100))
        permits.settle(tasks[1].result(), Ending.ACCEPTED)
        await clock.sleep(1)
        assert len(admitted) == 3, "one is in flight, and one is granted"
        assert permits.standing().in_flight == 1
        await end(tasks)

    virtual(scenario)


def test_a_grant_is_spread_over_the_refresh():
    async def scenario(permits, clock, hurries):
        admitted = []
        permits.take(Grant(requests=5, max_in_flight=100, refresh_s=1.0, valid_s=100))
        tasks = asking(permits, clock, admitted, *[ONE] * 8)
        await clock.sleep(5)
        await end(tasks)
        return [at for at, _ in admitted]

    assert virtual(scenario) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8], abs=0.03)


def test_a_grant_that_comes_twice_changes_nothing():
    async def scenario(permits, clock, hurries):
        admitted = []
        tasks = asking(permits, clock, admitted, *[ONE] * 8)
        for _ in range(3):
            permits.take(Grant(requests=3, max_in_flight=100, valid_s=100))
            await clock.sleep(1)
        await end(tasks)
        return len(admitted)

    assert virtual(scenario) == 3


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 20), st.integers(1, 8)), min_size=1, max_size=12), st.integers(1, 40))
def test_never_more_is_sent_than_was_granted(grants, wanted):
    async def scenario(permits, clock, hurries):
        admitted, total = [], 0.0
        tasks = asking(permits, clock, admitted, *[ONE] * wanted)
        for more, in_flight in grants:
            total += more
            permits.take(Grant(requests=total, max_in_flight=in_flight, valid_s=100))
            await clock.sleep(0.25)
            assert len(admitted) <= total + 1e-6
            for task in tasks:
                if task.done() and not task.cancelled():
                    permits.settle(task.result(), Ending.ACCEPTED)
            tasks = [task for task in tasks if not task.done()]
        returned = permits.standing().returned.requests
        assert len(admitted) + returned <= total + 1e-6
        await end(tasks)

    virtual(scenario)


# Sizes


def test_a_large_request_lets_smaller_ones_pass_and_still_has_its_turn():
    async def scenario(permits, clock, hurries):
        admitted, granted = [], 0.0
        tasks = asking(permits, clock, admitted, Amount(1, 1000), *[Amount(1, 10)] * 1000)
        for _ in range(100):  # 100 tokens a second
            granted += 25
            permits.take(Grant(tokens=granted, max_in_flight=10_000, refresh_s=0.25, valid_s=100))
            await clock.sleep(0.25)
        await end(tasks)
        return admitted

    admitted = virtual(scenario)
    large = next(at for at, need in admitted if need == 1000)
    assert 15 < large < 22, "half of 100 tokens a second is saved for it"
    passed = sum(at < large for at, need in admitted if need == 10)
    assert passed > 70, "the other half lets small ones pass"


def test_repeated_requests_go_first_in_their_order():
    async def scenario(permits, clock, hurries):
        order = []

        async def one(name, *, again):
            await permits.acquire(ONE, again=again)
            order.append(name)

        names = ("new 1", "again 1", "new 2", "again 2")
        tasks = [asyncio.ensure_future(one(name, again=name.startswith("again"))) for name in names]
        await clock.sleep(1)
        permits.take(OPEN)
        await asyncio.gather(*tasks)
        return order

    assert virtual(scenario) == ["again 1", "again 2", "new 1", "new 2"]


def test_a_request_that_no_limit_ever_allows_is_refused_at_once():
    for limits, need in (
        (Limits(tokens_per_minute=100), Amount(1, 60, 41)),
        (Limits(input_tokens_per_minute=100), Amount(1, 101)),
        (Limits(output_tokens_per_minute=100), Amount(1, 1, 101)),
    ):

        async def scenario(permits, clock, hurries, need=need):
            await permits.acquire(need)

        with pytest.raises(RowRejected, match="tokens per minute \\(100\\)") as refused:
            virtual(scenario, limits)
        assert refused.value.kind == "too_large"


@pytest.mark.parametrize(
    "seen",
    [
        Limits(output_tokens_per_minute=100),
        Limits(tokens_per_minute=110, output_tokens_per_minute=200),
    ],
)
def test_max_tokens_above_an_output_limit_that_headers_tell_is_no_reason_to_refuse(seen):
    async def scenario(permits, clock, hurries):
        permits.take(Grant(max_in_flight=1, valid_s=100))
        permit = await permits.acquire(ONE)
        tasks = asking(permits, clock, [], Amount(1, 10, 16_000))
        await clock.sleep(1)
        permits.settle(permit, Ending.ACCEPTED, seen=seen)
        await clock.sleep(1)
        waited = tasks[0].result()
        permits.settle(waited, Ending.ACCEPTED, used=Amount(1, 10, 20))
        later = await permits.acquire(Amount(1, 10, 16_000))
        assert (waited.need, later.need) == (Amount(1, 10, 100), Amount(1, 10, 100))
        permits.settle(later, Ending.ACCEPTED, used=Amount(1, 10, 20))
        standing = permits.standing()
        assert (standing.spent, standing.waiting) == (Amount(3, 20, 40), Amount())

    virtual(scenario)


def test_a_request_that_waits_is_refused_when_the_endpoint_tells_of_a_limit_below_it():
    async def scenario(permits, clock, hurries):
        permits.take(Grant(max_in_flight=1, valid_s=100))
        permit = await permits.acquire(ONE)
        tasks = asking(permits, clock, [], Amount(1, 500), Amount(1, 5))
        await clock.sleep(1)
        permits.settle(permit, Ending.ACCEPTED, seen=Limits(tokens_per_minute=100))
        await clock.sleep(1)
        assert isinstance(tasks[0].exception(), RowRejected)
        assert tasks[1].result().need.input_tokens == 5
        assert permits.standing().seen == Limits(tokens_per_minute=100)

    virtual(scenario)


# Settling


def settled(ending, used):
    async def scenario(permits, clock, hurries):
        permits.take(Grant(requests=10, tokens=1000, max_in_flight=10, valid_s=100))
        permit = await permits.acquire(Amount(1, 100, 50))
        permits.settle(permit, ending, used=used)
        return permits.standing().spent

    return virtual(scenario)


@pytest.mark.parametrize(
    ("ending", "used", "spent"),
    [
        (Ending.ACCEPTED, Amount(1, 90, 10), Amount(1, 90, 10)),
        (Ending.ACCEPTED, Amount(1, 200, 100), Amount(1, 200, 100)),
        (Ending.ACCEPTED, None, Amount(1, 100, 50)),
        (Ending.THROTTLED, None, Amount(1, 0, 0)),
        (Ending.FAILED, None, Amount(1, 100, 50)),
        (Ending.FAILED, Amount(1), Amount(1, 0, 0)),
        (Ending.CANCELLED, None, Amount(1, 100, 50)),
        (Ending.CANCELLED, Amount(), Amount(0, 0, 0)),
    ],
)
def test_what_was_used_takes_the_place_of_what_was_reserved(ending, used, spent):
    assert settled(ending, used) == spent


def test_what_is_given_back_admits_the_next_at_once_and_a_debt_delays_it():
    async def scenario(permits, clock, hurries, used):
        permits.take(Grant(tokens=100, max_in_flight=10, refresh_s=0.001, valid_s=100))
        permit = await permits.acquire(Amount(1, 100))
        admitted = []
        tasks = asking(permits, clock, admitted, Amount(1, 50))
        await clock.sleep(1)
        permits.settle(permit, Ending.ACCEPTED, used=Amount(1, used))
        await clock.sleep(1)
        before = len(admitted)
        permits.take(Grant(tokens=160, max_in_flight=10, refresh_s=0.001, valid_s=100))
        await clock.sleep(1)
        await end(tasks)
        return before, len(admitted)

    assert virtual(lambda *given: scenario(*given, used=20)) == (1, 1)
    assert virtual(lambda *given: scenario(*given, used=120)) == (0, 0)
    assert virtual(lambda *given: scenario(*given, used=110)) == (0, 1)


def test_one_that_is_cancelled_while_it_waits_takes_nothing():
    async def scenario(permits, clock, hurries):
        permits.take(Grant(requests=2, max_in_flight=1, refresh_s=0.001, valid_s=100))
        permit = await permits.acquire(ONE)
        waiting = asyncio.ensure_future(permits.acquire(ONE))
        await clock.sleep(1)
        await end([waiting])
        permits.settle(permit, Ending.ACCEPTED)
        await permits.acquire(ONE)
        return permits.standing()

    standing = virtual(scenario)
    assert standing.in_flight == 1
    assert standing.spent.requests == 2
    assert standing.waiting == Amount()


def test_one_that_is_cancelled_in_the_moment_of_its_admission_takes_nothing():
    async def scenario(permits, clock, hurries):
        permits.take(Grant(max_in_flight=1, valid_s=100))
        permit = await permits.acquire(ONE)
        waiting = asyncio.ensure_future(permits.acquire(ONE))
        await clock.sleep(1)
        permits.settle(permit, Ending.ACCEPTED)  # admits it; it has not run yet
        await end([waiting])
        return permits.standing()

    standing = virtual(scenario)
    assert standing.in_flight == 0
    assert standing.spent.requests == 1


# What is returned


def test_what_is_not_wanted_is_returned_and_not_used_any_more():
    async def scenario(permits, clock, hurries):
        permits.take(Grant(requests=10, max_in_flight=10, valid_s=100))
        standing = permits.standing()
        assert standing.returned.requests == 10
        waiting = asyncio.ensure_future(permits.acquire(ONE))
        await clock.sleep(1)
        assert not waiting.done()
        assert permits.standing().returned.requests == 10
        permits.take(Grant(requests=11, max_in_flight=10, valid_s=100))
        await waiting

    virtual(scenario)


def test_what_is_saved_for_a_waiting_request_is_kept():
    async def scenario(permits, clock, hurries):
        permits.take(Grant(tokens=300, max_in_flight=10, valid_s=100))
        waiting = asyncio.ensure_future(permits.acquire(Amount(1, 1000)))
        await clock.sleep(1)
        standing = permits.standing()
        await end([waiting])
        return standing

    standing = virtual(scenario)
    assert standing.returned.tokens == 0
    assert standing.wanted.input_tokens == 1000


def test_a_task_that_keeps_sending_keeps_what_it_will_need_soon():
    async def scenario(permits, clock, hurries):
        granted = 0.0
        for _ in range(40):  # 20 a second, never waiting
            granted += 5
            permits.take(Grant(requests=granted, max_in_flight=10, refresh_s=0.25, valid_s=100))
            for _ in range(5):
                await clock.sleep(0.05)
                permits.settle(await permits.acquire(ONE), Ending.ACCEPTED)
            permits.standing()
        granted += 5
        permits.take(Grant(requests=granted, max_in_flight=10, refresh_s=0.25, valid_s=100))
        return permits.standing()

    standing = virtual(scenario)
    assert standing.wanted.requests == pytest.approx(7.5, abs=1.5)
    assert standing.returned.requests <= 2


# Throttles


def test_a_pause_that_the_endpoint_asks_for_closes_the_task_and_reopens_it_with_jitter():
    async def scenario(permits, clock, hurries):
        permits.take(OPEN)
        permits.settle(await permits.acquire(ONE), Ending.THROTTLED, retry_after_s=10)
        assert hurries == [0]
        permits.settle(await permits.acquire(ONE), Ending.ACCEPTED)
        return clock.now()

    assert virtual(scenario, random=lambda: 0.5) == pytest.approx(10.5, abs=0.01)
    assert virtual(scenario, random=lambda: 0.0) == pytest.approx(10, abs=0.01)


def test_a_shorter_pause_does_not_end_a_longer_one():
    async def scenario(permits, clock, hurries):
        permits.take(OPEN)
        first, second = await permits.acquire(ONE), await permits.acquire(ONE)
        permits.settle(first, Ending.THROTTLED, retry_after_s=10)
        permits.settle(second, Ending.THROTTLED, retry_after_s=1)
        await permits.acquire(ONE)
        return clock.now()

    assert virtual(scenario) >= 10


def test_a_pause_that_the_pool_passes_on_is_kept_but_not_reported_back():
    async def scenario(permits, clock, hurries):
        permits.take(Grant(max_in_flight=10, valid_s=100, closed_s=5))
        assert permits.standing().retry_after_s is None
        await permits.acquire(ONE)
        return clock.now()

    assert virtual(scenario, random=lambda: 0.0) == pytest.approx(5, abs=0.01)


def test_throttles_are_counted_by_the_epoch_in_which_their_request_was_sent():
    async def scenario(permits, clock, hurries):
        permits.take(Grant(max_in_flight=10, valid_s=100, epoch=3))
        early = [await permits.acquire(ONE) for _ in range(3)]
        permits.settle(early[0], Ending.THROTTLED)
        first = permits.standing()
        permits.take(Grant(max_in_flight=10, valid_s=100, epoch=4))
        late = await permits.acquire(ONE)
        permits.settle(early[1], Ending.THROTTLED)
        permits.settle(late, Ending.THROTTLED)
        permits.settle(early[2], Ending.THROTTLED)
        return first, permits.standing(), hurries

    first, last, hurries = virtual(scenario)
    assert (first.epoch, first.throttled_in_epoch, first.throttled) == (3, 1, 1)
    assert (last.epoch, last.throttled_in_epoch, last.throttled) == (4, 1, 4)
    assert len(hurries) == 2, "once an epoch"


def test_the_first_throttle_of_an_epoch_holds_the_task_until_the_pool_has_answered_it():
    async def scenario(permits, clock, hurries, answer_at):
        permits.take(Grant(max_in_flight=10, valid_s=100, refresh_s=0.25))
        permits.settle(await permits.acquire(ONE), Ending.THROTTLED)
        waiting = asyncio.ensure_future(permits.acquire(ONE))
        await clock.sleep(answer_at)
        assert not waiting.done()
        permits.take(Grant(max_in_flight=10, valid_s=100, refresh_s=0.25))  # the answer to an earlier standing
        await clock.sleep(0.01)
        assert not waiting.done()
        permits.take(Grant(max_in_flight=10, valid_s=100, refresh_s=0.25, epoch=1))
        await waiting
        first = clock.now()
        permits.settle(await permits.acquire(ONE), Ending.THROTTLED)
        await permits.acquire(ONE)
        return first, clock.now() - first

    first, without_answer = virtual(lambda *given: scenario(*given, answer_at=0.05))
    assert first == pytest.approx(0.06)
    assert without_answer == pytest.approx(0.25, abs=0.01)


def test_replies_are_counted_with_their_latency_and_size():
    async def scenario(permits, clock, hurries):
        permits.take(OPEN)
        for tokens in (5, 7):
            permit = await permits.acquire(Amount(1, 10, 50))
            permits.settle(permit, Ending.ACCEPTED, used=Amount(1, 10, tokens), latency_s=0.5)
        permits.settle(await permits.acquire(ONE), Ending.FAILED, latency_s=9)
        return permits.standing()

    standing = virtual(scenario)
    assert (standing.accepted, standing.latency_s, standing.output_tokens) == (2, 1.0, 12)


# Hurrying


def test_a_task_that_has_used_up_its_grant_hurries_once():
    async def scenario(permits, clock, hurries):
        tasks = asking(permits, clock, [], *[ONE] * 20)
        await clock.sleep(0)
        hurries.clear()
        permits.take(Grant(requests=4, max_in_flight=100, refresh_s=1.0, valid_s=100))
        await clock.sleep(5)
        await end(tasks)
        return hurries

    hurries = virtual(scenario)
    assert hurries == [pytest.approx(0.75, abs=0.03)]


def test_a_task_without_slots_hurries_when_it_begins_to_wait():
    async def scenario(permits, clock, hurries):
        permits.take(Grant(max_in_flight=0, valid_s=100))
        await clock.sleep(10)
        waiting = asyncio.ensure_future(permits.acquire(ONE))
        await clock.sleep(1)
        await end([waiting])
        return hurries

    assert virtual(scenario) == [10]


def test_a_task_whose_slots_were_taken_hurries_when_they_are_free():
    async def scenario(permits, clock, hurries):
        permits.take(Grant(max_in_flight=1, valid_s=100))
        permit = await permits.acquire(ONE)
        permits.take(Grant(max_in_flight=0, valid_s=100))
        await clock.sleep(2)
        permits.settle(permit, Ending.ACCEPTED)
        return hurries

    assert virtual(scenario) == [2]


# The window


def test_the_window_is_the_configured_concurrency_or_grows_with_what_is_granted():
    async def scenario(permits, clock, hurries):
        sizes = [permits.max_in_flight]
        for granted in (10, 400, 10**6):
            permits.take(Grant(max_in_flight=granted, valid_s=100))
            sizes.append(permits.max_in_flight)
        return sizes

    assert virtual(scenario, Limits(max_concurrency=7)) == [7, 7, 7, 7]
    assert virtual(scenario) == [IN_FLIGHT_PER_TASK, IN_FLIGHT_PER_TASK, 800, MOST_IN_FLIGHT_PER_TASK]


# Threads


def test_standings_from_another_thread_never_give_away_what_is_spent():
    granted, ended = 20_000, threading.Event()
    standings = []

    async def main():
        permits = TaskPermits(Limits(), SystemClock(), lambda: 0.5, lambda: None)
        permits.take(Grant(requests=granted, max_in_flight=100, refresh_s=1e-9, valid_s=1000))

        def report():
            while not ended.is_set():
                standings.append(permits.standing())

        reporter = threading.Thread(target=report)
        reporter.start()
        sent = 0
        try:
            for _ in range(5_000):
                permits.settle(await asyncio.wait_for(permits.acquire(ONE), 0.05), Ending.ACCEPTED)
                sent += 1
        except TimeoutError:
            pass  # all the rest was returned
        finally:
            ended.set()
            reporter.join()
        return sent, permits.standing()

    sent, last = asyncio.run(main())
    assert last.spent.requests == sent
    assert sent + last.returned.requests <= granted
    numbers = [standing.number for standing in standings]
    assert numbers == sorted(set(numbers))

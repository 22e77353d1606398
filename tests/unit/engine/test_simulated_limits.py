"""Whole runs in virtual time, against simulated endpoints. `pytest -s` shows the figures."""

import random

import pytest

from batch_infer.contract.limits import Limits
from tests.support.simulator import Latency, Rated, Row, Slotted, Task, TokenRated, World


def rows(count):
    return [Row() for _ in range(count)]


def parts(*sizes):
    return [Task(rows(size), name=f"partition {index}") for index, size in enumerate(sizes)]


def report(name, world, best=None):
    server = world.server
    accepted, throttled = len(server.accepted), server.throttled
    share = f", {accepted / best:.1%} of the best" if best else ""
    print(
        f"\n{name}: {world.ended_at:.1f} s, {accepted} accepted{share}, {throttled} throttled "
        f"({throttled / accepted:.2%}), at most {server.most_in_flight()} in flight, "
        f"at most {server.busiest(60)} in 60 s"
    )
    return accepted, throttled


def test_a_configured_rate_is_used_whole_and_never_exceeded():
    world = World(Rated(Latency(0.5), 50, 50), parts(2000, 700, 250, 50), limits=Limits(requests_per_minute=3000))
    _, throttled = report("3,000 a minute, configured", world.run())
    arrivals = world.server.arrivals
    assert arrivals[-1] - arrivals[0] <= 1.05 * 60
    assert throttled == 0
    assert world.server.busiest(60) <= 1.02 * 3000


@pytest.mark.parametrize("retry_after", [False, True])
def test_a_rate_that_nobody_configured_is_found(retry_after):
    world = World(Rated(Latency(0.5), 50, 50, retry_after), parts(2000, 700, 250, 50))
    accepted, throttled = report(f"3,000 a minute, not configured, Retry-After {retry_after}", world.run())
    assert world.server.arrivals[-1] <= 1.15 * 60
    assert throttled <= 0.02 * accepted


@pytest.mark.parametrize(("burst", "seconds"), [(5, 110), (100, 66)])
def test_a_rate_is_found_whatever_burst_the_endpoint_allows(burst, seconds):
    for seed in range(3):
        world = World(Rated(Latency(0.5, 0.5, seed), 50, burst, True), parts(2000, 700, 250, 50), seed=seed)
        accepted, throttled = report(f"burst {burst}, seed {seed}", world.run())
        assert world.ended_at <= seconds
        assert throttled <= 0.04 * accepted


def prompts(count, seed):
    """Lengths 100-fold different, as many of each order of magnitude."""
    chance = random.Random(seed)
    return [Row(int(10 * 100 ** chance.random()), chance.randint(5, 40), 64) for _ in range(count)]


@pytest.mark.parametrize(("tokens_per_minute", "count"), [(6_000, 60), (60_000, 500), (600_000, 5_000)])
def test_tokens_are_used_whole_with_prompts_of_very_different_lengths(tokens_per_minute, count):
    shares = (0.7, 0.2, 0.08, 0.02)
    tasks = [Task(prompts(int(count * share), i), name=f"partition {i}") for i, share in enumerate(shares)]
    server = TokenRated(Latency(0.5, 0.5), tokens_per_minute, max(tokens_per_minute / 6, 2_000))
    world = World(server, tasks, limits=Limits(tokens_per_minute=tokens_per_minute))
    accepted, throttled = report(f"{tokens_per_minute} tokens a minute", world.run())
    allowed = tokens_per_minute / 60 * world.ended_at
    print(f"tokens used: {server.tokens / allowed:.1%} of the allowed")
    assert server.tokens >= 0.95 * allowed
    assert throttled <= 0.01 * accepted


def test_a_partition_with_nearly_all_rows_has_the_whole_budget_until_the_end():
    tasks = parts(2700, 100, 100, 100)
    world = World(Rated(Latency(0.5), 50, 50), tasks, limits=Limits(requests_per_minute=3000), slots=4)
    report("90% in one partition", world.run())
    for start in range(2, 56, 6):
        used = sum(start <= at < start + 6 for at in world.server.arrivals)
        assert used >= 0.95 * 300, f"from {start} s"


@pytest.mark.parametrize(("slots", "latency_s", "seconds"), [(64, 0.5, 100), (16, 0.8, 150)])
def test_slots_behind_a_queue_without_end_are_kept_busy_and_the_queue_short(slots, latency_s, seconds):
    for seed in range(2):
        server = Slotted(Latency(latency_s, 0.5, seed), slots)
        world = World(server, parts(20_000, 20_000), until=seconds, seed=seed).run()
        best = slots / latency_s * seconds
        accepted, _ = report(f"{slots} slots, endless queue, seed {seed}", world, best)
        assert accepted >= 0.93 * best
        assert server.most_in_flight() < 3 * max(64, slots)
        assert server.most_in_flight(since=80) < 4 * slots


def test_two_slots_are_kept_busy_and_the_window_ends_near_them():
    server = Slotted(Latency(0.8, 0.5, 1), 2)
    world = World(server, parts(2_000, 2_000), until=300).run()
    accepted, _ = report("2 slots, endless queue", world, 2 / 0.8 * 300)
    assert accepted >= 0.93 * 2 / 0.8 * 300
    assert server.most_in_flight() <= 16
    assert server.most_in_flight(since=200) <= 8


def test_slots_behind_a_short_queue_are_kept_busy_with_few_throttles():
    for seed in range(2):
        server = Slotted(Latency(0.5, 0.5, seed), 64, queue=32)
        world = World(server, parts(20_000, 20_000), until=100, seed=seed).run()
        accepted, throttled = report(f"64 slots, queue of 32, seed {seed}", world, 128 * 100)
        assert accepted >= 0.93 * 128 * 100
        assert throttled <= 0.015 * accepted


def test_a_rate_that_falls_and_rises_is_followed():
    server = Rated(Latency(0.5, 0.5), lambda now: 15 if 200 <= now < 400 else 50, 50)
    world = World(server, parts(20_000, 20_000), until=600).run()
    allowed = 200 * (50 + 15 + 50)
    accepted, throttled = report("50, 15, 50 a second", world, allowed)
    assert accepted >= 0.93 * allowed
    assert throttled <= 0.03 * accepted


def test_slots_that_become_more_are_found():
    server = Slotted(Latency(0.5, 0.5), 16)
    world = World(server, parts(20_000, 20_000), until=240)

    async def grow():
        await world.clock.sleep(60)
        server.slots = 64

    world.also = grow
    world.run()
    late = sum(at >= 150 for at in server.accepted)
    print(f"\n16 slots, then 64: {late / 90:.0f} a second at the end, of 128")
    assert late >= 0.9 * 128 * 90


def test_slow_replies_under_a_rate_are_kept_in_flight():
    world = World(Rated(Latency(8, 0.5), 5, 5, True), parts(2_000, 2_000), until=300).run()
    accepted, throttled = report("5 a second, 8 s each", world, 5 * 300)
    assert accepted >= 0.85 * 5 * 300
    assert throttled <= 0.04 * accepted


def test_a_fast_endpoint_is_not_held_back():
    world = World(Slotted(Latency(0.05), 10_000), parts(10_000, 10_000), limits=Limits(max_concurrency=128)).run()
    report("50 ms, 128 in flight configured", world, None)
    assert next(at for at, count in world.server.in_flight if count == 128) <= 1.0
    assert world.server.most_in_flight() == 128
    assert world.ended_at <= 1.08 * 20_000 * 0.05 / 128
    world = World(Slotted(Latency(0.002), 10_000), parts(10_000, 10_000)).run()
    report("2 ms, nothing configured", world, None)
    assert world.ended_at <= 2


@pytest.mark.parametrize("limits", [Limits(requests_per_minute=3000), Limits(requests_per_minute=120)])
def test_the_budget_of_one_that_dies_goes_to_the_other(limits):
    one, killed = Task(rows(9_000), name="one"), Task(rows(9_000), name="killed", killed_at=40)
    world = World(Rated(Latency(0.5), 1000, 1000), [one, killed], limits=limits, until=110).run()
    report("one of two dies at 40 s", world)
    per_s = limits.requests_per_minute / 60
    after = sum(45 <= at < 105 for at in one.sent) / 60
    assert after == pytest.approx(per_s, rel=0.03)
    assert world.server.busiest(60) <= 60 * per_s * 1.02 + 1


def test_the_slots_of_one_that_dies_go_to_the_other():
    one, killed = Task(rows(9_000), name="one"), Task(rows(9_000), name="killed", killed_at=40)
    world = World(Slotted(Latency(0.5), 1000), [one, killed], limits=Limits(max_concurrency=20), until=60).run()
    report("one of two dies at 40 s, 20 in flight", world)
    assert sum(46 <= at < 60 for at in one.sent) / 14 == pytest.approx(40, rel=0.05)
    assert world.server.most_in_flight() <= 20


def test_many_tasks_share_few_slots_and_few_requests():
    tasks = [Task(rows(500), name=f"task {index}") for index in range(16)]
    world = World(Slotted(Latency(0.5), 1000), tasks, limits=Limits(max_concurrency=3), slots=16, until=120).run()
    report("16 tasks, 3 slots", world, 720)
    assert world.server.most_in_flight() <= 3
    assert len(world.server.accepted) >= 0.9 * 720
    assert min(len(task.sent) for task in tasks) >= 0.7 * max(len(task.sent) for task in tasks)

    tasks = [Task(rows(500), name=f"task {index}") for index in range(16)]
    world = World(
        Rated(Latency(0.5), 1000, 1000), tasks, limits=Limits(requests_per_minute=60), slots=16, until=240
    ).run()
    report("16 tasks, 60 a minute", world, 240)
    assert len(world.server.arrivals) >= 0.97 * 240
    assert world.server.busiest(60) <= 63
    assert min(len(task.sent) for task in tasks) >= 12

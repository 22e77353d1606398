"""One endpoint's budget for the whole cluster: what all grants together may be, and who gets them."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batch_infer.contract.limits import Amount, Limits, Standing
from batch_infer.engine.budget.account import Account
from batch_infer.engine.budget.dimensions import TOKENS, ZERO
from batch_infer.engine.budget.pool import FORGOTTEN_AFTER, Pool

REFRESH_S = 0.25


class Member:
    """A task that sends whatever it may at once, each request of one size, and counts what it sent."""

    def __init__(self, pool, name, tokens=0.0):
        self.pool = pool
        self.name = name
        self.need = (1.0, tokens, tokens, 0.0)
        self.lease = Account()
        self.number = 0
        self.sent = 0
        self.in_flight = 0
        self.may_fly = 0
        self.wants = 0
        self.counts = {}

    def standing(self, give_back=False):
        if give_back:
            self.lease.hand_back(ZERO)
        self.number += 1
        requests, _, tokens, _ = self.lease.spent
        waiting = Amount(self.wants, self.wants * self.need[TOKENS])
        return Standing(
            number=self.number,
            spent=Amount(requests, tokens),
            waiting=waiting,
            wanted=waiting,
            smallest=Amount(1, self.need[TOKENS]) if self.wants else Amount(),
            returned=self.lease.returned,
            in_flight=self.in_flight,
            **self.counts,
        )

    def take(self, grant, now):
        self.lease.take(grant, now, None)
        self.may_fly = grant.max_in_flight

    def send(self, now):
        """Sends what it may; replies come at once."""
        while self.wants and self.lease.fits(self.need) and self.in_flight < self.may_fly:
            self.lease.spend(self.need, now)
            self.sent += 1
            self.wants -= 1

    def exchange(self, now, give_back=False):
        grant = self.pool.exchange(self.name, self.standing(give_back), now)
        self.take(grant, now)
        self.send(now)
        return grant


def budget(window=10**6, **limits):
    """A pool whose controller has found out already that so many requests may be in flight."""
    pool = Pool(Limits(**limits), 0.0, lambda: 0.5)
    pool._controller.window = window
    return pool


def members(pool, count, tokens=0.0):
    return [Member(pool, f"m{index}", tokens) for index in range(count)]


def run(pool, group, seconds, *, start=0.0, wants=10):
    """All members of a group exchange in turn, each once a refresh, and always want more."""
    step = REFRESH_S / len(group)
    now = start
    while now < start + seconds:
        for member in group:
            member.wants = wants
            member.exchange(now)
            now += step
    return now


# Never more than the limit


OPERATIONS = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.sampled_from(
            [
                "exchange",
                "exchange",
                "standing lost",
                "grant lost",
                "repeat",
                "late",
                "return",
                "leave",
                "die",
                "expire",
            ]
        ),
        st.floats(0, 3),
        st.integers(0, 40),
    ),
    max_size=80,
)


@settings(max_examples=150, deadline=None)
@given(st.floats(1, 6000), st.sampled_from([0.0, 1.0, 300.0]), OPERATIONS, st.booleans())
def test_whatever_is_lost_repeated_or_dies_no_more_is_sent_than_the_limit_allows(per_minute, tokens, steps, by_tokens):
    size = tokens if by_tokens and tokens else 1.0
    limits = Limits(tokens_per_minute=per_minute) if by_tokens and tokens else Limits(requests_per_minute=per_minute)
    pool = Pool(limits, 0.0, lambda: 0.5)
    group, gone, old = members(pool, 4, tokens), [], {}
    now = 0.0
    for index, operation, pause, wants in steps:
        now += pause
        member = group[index]
        member.wants = wants
        standing = None
        if operation == "exchange":
            standing = member.standing()
            member.take(pool.exchange(member.name, standing, now), now)
        elif operation == "return":
            member.exchange(now, give_back=True)
        elif operation == "standing lost":
            member.standing(give_back=True)
        elif operation == "grant lost":
            pool.exchange(member.name, member.standing(), now)
        elif operation == "repeat":
            standing = member.standing()
            for _ in range(3):
                grant = pool.exchange(member.name, standing, now)
            member.take(grant, now)
            member.take(grant, now)
        elif operation == "late" and index in old:
            member.take(pool.exchange(member.name, old[index], now), now)
        elif operation == "leave":
            pool.leave(member.name, now, member.standing())
        elif operation == "expire":
            pool.expire(now)
        if standing is not None:
            old[index] = standing
        member.send(now)
        if operation in ("leave", "die"):
            gone.append(member)
            group[index] = Member(pool, f"{member.name}+", tokens)
            old.pop(index, None)
        sent = sum(one.sent for one in [*group, *gone]) * size
        rate = per_minute / 60
        assert sent <= rate * now + max(1.0, 0.1 * rate, size) + 1e-3


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(1, 24), st.integers(0, 10**6))
def test_requests_in_flight_never_exceed_the_limit_while_members_come_and_go(limit, count, seed):
    chance = random.Random(seed)
    pool = Pool(Limits(max_concurrency=limit), 0.0, lambda: 0.5)
    group, now = members(pool, count), 0.0
    for _ in range(400):
        now += 0.02
        member = chance.choice(group)
        member.in_flight -= chance.randint(0, member.in_flight)
        member.wants = chance.choice([0, 3, 20])
        member.take(pool.exchange(member.name, member.standing(), now), now)
        member.in_flight = max(member.in_flight, min(member.may_fly, member.in_flight + member.wants))
        assert sum(one.in_flight for one in group) <= limit


# All of the limit


@pytest.mark.parametrize("count", [1, 3, 40])
@pytest.mark.parametrize("per_minute", [30, 600, 60_000])
def test_members_that_want_more_use_the_whole_limit_between_them(count, per_minute):
    pool = budget(requests_per_minute=per_minute)
    group = members(pool, count)
    run(pool, group, 60, wants=1000)
    assert sum(one.sent for one in group) == pytest.approx(per_minute, rel=0.02, abs=2)


def test_the_limit_is_divided_equally_among_members_that_want_more():
    pool = budget(requests_per_minute=6000)
    group = members(pool, 5)
    run(pool, group, 30)
    assert [one.sent for one in group] == pytest.approx([600] * 5, rel=0.05)


def test_what_a_modest_member_leaves_goes_to_the_others():
    pool = budget(requests_per_minute=6000)
    modest, greedy = members(pool, 2)
    for step in range(240):
        now = step * REFRESH_S
        modest.wants = 2
        modest.exchange(now)
        greedy.wants = 100
        greedy.exchange(now + REFRESH_S / 2)
    assert modest.sent >= 2 * 240 - 4
    assert modest.sent + greedy.sent == pytest.approx(6000, rel=0.02)


def test_what_is_returned_is_there_for_others():
    pool = budget(requests_per_minute=600)
    first, second = members(pool, 2)
    first.wants = 5
    pool.exchange(first.name, first.standing(), 0.0)
    first.take(pool.exchange(first.name, first.standing(), 0.5), 0.5)
    held = first.lease.left(0)
    assert held == pytest.approx(5)
    first.wants = 0
    first.exchange(0.5, give_back=True)
    assert first.lease.left(0) == 0
    second.wants = 5
    second.exchange(0.5)
    assert second.sent == 5


def test_a_member_that_leaves_gives_back_what_it_has_not_spent_and_pays_its_debt():
    for used, there in ((2.0, 3.0), (9.0, -4.0)):
        pool = budget(tokens_per_minute=600)
        (member,) = members(pool, 1, tokens=5.0)
        member.wants = 1
        member.exchange(0.0)
        assert member.sent == 1
        member.lease.correct(member.need, (1.0, used, used, 0.0), None)
        pool.leave(member.name, 0.0, member.standing())
        assert pool._buckets[TOKENS].level == pytest.approx(there)


def test_few_requests_are_granted_whole_and_everyone_has_its_turn():
    pool = budget(tokens_per_minute=6000)
    group = members(pool, 20, tokens=500.0)  # one every 5 s, for 20 members
    run(pool, group, 200)
    assert sum(one.sent for one in group) == pytest.approx(40, abs=2)
    assert max(one.sent for one in group) - min(one.sent for one in group) <= 1
    assert sum(one.lease.left(TOKENS) > 1 for one in group) <= 1


# Members that are gone


def test_the_share_of_a_silent_member_goes_to_the_others_at_once():
    pool = budget(requests_per_minute=6000)
    silent, other = members(pool, 2)
    now = run(pool, [silent, other], 10)
    before = other.sent
    run(pool, [other], 10, start=now, wants=100)
    assert other.sent - before == pytest.approx(1000, rel=0.06)


def test_the_slots_of_a_silent_member_are_free_when_its_grant_is_void():
    pool = Pool(Limits(max_concurrency=8), 0.0, lambda: 0.5)
    silent, other = members(pool, 2)
    for member in (silent, other, silent, other):
        member.wants = 20
        grant = pool.exchange(member.name, member.standing(), 0.0)
        member.take(grant, 0.0)
    assert other.may_fly == 4
    pool.expire(grant.valid_s)
    other.exchange(grant.valid_s)
    assert other.may_fly == 4, "its grant is still good"
    later = FORGOTTEN_AFTER * grant.valid_s + 0.01
    pool.expire(later)
    other.wants = 20
    assert other.exchange(later).max_in_flight == 8


def test_a_forgotten_member_that_comes_back_is_heard_again():
    pool = budget(requests_per_minute=600)
    (member,) = members(pool, 1)
    run(pool, [member], 2)
    pool.expire(100.0)
    assert pool.state(100.0).members == 0
    before = member.sent
    run(pool, [member], 10, start=100.0)
    assert member.sent - before == pytest.approx(100, abs=8)


# Slots


def test_slots_are_divided_by_demand_and_what_nobody_wants_is_headroom():
    pool = budget(30, max_concurrency=30)
    group = members(pool, 3)
    for _ in range(3):
        for member, wants in zip(group, (2, 50, 50), strict=True):
            member.wants = wants
            member.take(pool.exchange(member.name, member.standing(), 0.0), 0.0)
    assert [one.may_fly for one in group] == [2, 14, 14]


def test_with_fewer_slots_than_members_nobody_waits_for_ever():
    pool = Pool(Limits(max_concurrency=2), 0.0, lambda: 0.5)
    group = members(pool, 8)
    turns = dict.fromkeys(group, 0)
    for step in range(400):
        now = step * REFRESH_S
        for member in group:
            member.in_flight = 0  # each request takes one refresh
            member.wants = 5
            member.take(pool.exchange(member.name, member.standing(), now), now)
            member.in_flight = member.may_fly
            turns[member] += member.in_flight
        assert sum(one.in_flight for one in group) <= 2
    assert min(turns.values()) > 0.5 * max(turns.values())


# What the endpoint says


def test_the_tighter_of_configured_and_seen_limits_binds():
    for configured, seen, expected in ((600, 300, 300), (300, 600, 300), (None, 300, 300)):
        pool = budget(requests_per_minute=configured)
        pool.limit(Limits(requests_per_minute=seen), 0.0)
        (member,) = members(pool, 1)
        run(pool, [member], 60)
        assert member.sent == pytest.approx(expected, rel=0.03)


def test_limits_that_a_member_has_seen_bind_everyone():
    pool = Pool(Limits(), 0.0, lambda: 0.5)
    one, other = members(pool, 2)
    one.exchange(0.0)
    assert other.exchange(0.0).requests is None
    one.counts = {"seen": Limits(requests_per_minute=60)}
    one.exchange(0.1)
    assert other.exchange(0.1).requests is not None


def test_a_pause_that_one_member_was_asked_for_closes_everyone():
    pool = Pool(Limits(), 0.0, lambda: 0.5)
    one, other = members(pool, 2)
    one.exchange(0.0)
    one.counts = {"retry_after_s": 3.0, "throttled": 1, "throttled_in_epoch": 1}
    one.wants = 1
    one.exchange(1.0)
    grant = other.exchange(2.0)
    assert grant.closed_s == pytest.approx(2.0)
    assert pool.state(2.0).bound_by == "a pause that the endpoint asked for"
    assert pool.state(2.0).throttled == 1
    assert other.exchange(4.5).closed_s == 0


def test_a_share_of_the_limits_is_what_a_pool_without_a_driver_uses():
    pool = Pool(Limits(requests_per_minute=600, max_concurrency=10), 0.0, lambda: 0.5, share=0.25)
    (member,) = members(pool, 1)
    run(pool, [member], 60)
    assert member.sent == pytest.approx(150, abs=4)
    assert member.may_fly == 2


# What is shown


def test_the_state_names_what_binds_and_how_much_of_each_limit_is_used():
    pool = budget(requests_per_minute=6000, tokens_per_minute=6000)
    (member,) = members(pool, 1, tokens=10.0)
    now = run(pool, [member], 40)
    state = pool.state(now)
    assert state.bound_by == "tokens per minute"
    assert state.used["tokens per minute"] == pytest.approx(1, abs=0.1)
    assert state.used["requests per minute"] == pytest.approx(0.1, abs=0.02)


def test_nothing_binds_while_nobody_waits():
    pool = budget(requests_per_minute=6000)
    (member,) = members(pool, 1)
    member.exchange(0.0)
    assert pool.state(0.0).bound_by is None


def test_reports_are_rarer_when_there_are_many_members():
    pool = Pool(Limits(), 0.0, lambda: 0.5)
    for member in members(pool, 800):
        grant = member.exchange(0.0)
    assert grant.refresh_s == pytest.approx(2.0)
    assert grant.valid_s >= 4 * grant.refresh_s

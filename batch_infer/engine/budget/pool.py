"""Owns one endpoint's budget for the whole cluster: who may use how much of it. Does not carry messages or read clocks.

Every rate is a small central bucket. What a member is granted is taken from it, what a member returns goes in again, so
all grants together never exceed limit x time + burst, whoever dies or whichever message is lost. A member that asks
gets what is there, less what others that wait for a grant are due meanwhile: their max-min fair share of what flows in.
Requests in flight are divided in the same spirit: what others were told, or still have in flight, is not given again.

On the driver; on a worker where the driver does not answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass

from batch_infer.contract.limits import Grant, Limits, Standing
from batch_infer.engine.budget.bucket import Bucket
from batch_infer.engine.budget.controller import Controller
from batch_infer.engine.budget.dimensions import (
    DIMENSIONS,
    NAMES,
    REQUESTS,
    WORDS,
    per_minute,
    tighter,
    vector,
    zeros,
)
from batch_infer.engine.budget.member import Member, returned, spent
from batch_infer.engine.budget.slots import Slots

BURST_S = 0.5
"""Seconds of its rate that a bucket holds: 60 s see at most limit x 60.5/60, and what tasks had in hand."""
FIRST_LEVEL_S = 0.1
"""Seconds of the full rate that a bucket holds at first."""
REFRESH_S = 0.25
REFRESH_AT_START_S = 0.1
"""Seconds between reports: the usual value, and the one while the controller finds out fast and the members are few."""
REFRESH_SPREAD = 0.1
"""Share of the time between reports by which it varies, so that members do not report in step."""
MEMBERS_PER_REFRESH_S = 400
"""Members that report within one second: with more of them each reports less often."""
VALID_S = 4.0
VALID_REFRESHES = 4.0
FORGOTTEN_AFTER = 1.1
"""A silent member is forgotten after this multiple of a grant's validity; by then it has stopped sending."""
LATE_S = 0.3
"""Beyond two refreshes: a member so late has nothing kept back for it."""
SWEEPS_PER_REFRESH = 20
"""Sweeps over all members in one refresh when there are many; with few there is one at every exchange."""
FEW_MEMBERS = 32
USE_OVER_S = 10.0
"""Seconds over which use is averaged for display."""
BINDS_FOR_S = 0.5
TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True)
class PoolState:
    """What a display wants to know."""

    bound_by: str | None
    """Which limit holds requests back, in words; `None`: none does."""
    used: Mapping[str, float]
    """For each limited rate, in words: the share of it that is used, averaged over some seconds; 1 is all."""
    throttled: int
    """Replies that asked to slow down, so far."""
    in_flight: int
    window: int
    """Requests that may be in flight."""
    members: int


class Pool:
    """One endpoint's budget. Not thread-safe; the caller gives the time, in seconds of one clock.

    Args:
        limits: The user's own, for the whole cluster.
        now: The time.
        random: Uniform in [0, 1); spreads the members' reports, so that they do not come in step.
        share: Of all limits that this pool may use: 1 / task slots where nobody shares a budget.
    """

    def __init__(self, limits: Limits, now: float, random: Callable[[], float], *, share: float = 1.0) -> None:
        self._configured = limits
        self._limits = limits
        self._share = share
        self._random = random
        self._members: dict[Hashable, Member] = {}
        self._buckets: dict[int, Bucket] = {}
        self._controller = Controller(now, self._most_in_flight(), is_told=limits != Limits())
        self._untouched = set(DIMENSIONS)
        self._closed_until = -math.inf
        self._throttled = 0
        self._binding: int | None = None
        self._binding_at = -math.inf
        self._use = zeros()
        self._used_at = now

        self._swept_at = -math.inf
        self._kept_back = zeros()
        self._asking: list[Member] = []
        self._slots = Slots()
        self._set_rates(now)

    def exchange(self, member: Hashable, standing: Standing, now: float) -> Grant:
        """Takes where a member stands; gives what it may use.

        Contract: a standing that is lost, or comes twice, changes no sum.
        """
        asking = self._members.get(member)
        if asking is None:
            asking = self._members[member] = Member(standing, now)
            for d in DIMENSIONS:
                asking.granted[d] = spent(standing)[d] + returned(standing)[d]
            self._controller.epoch = max(self._controller.epoch, standing.epoch)
            if standing.seen is not None:
                self.limit(standing.seen, now)
        else:
            self._hear(asking, standing, now)
        self._set_rates(now)
        if len(self._members) <= FEW_MEMBERS or now - self._swept_at >= self.refresh_s / SWEEPS_PER_REFRESH:
            self._sweep(now)
        self._grant_rates(asking)
        self._slots.grant(asking, self._window, now)
        return Grant(
            **{NAMES[d]: asking.granted[d] for d in DIMENSIONS if d in self._buckets},
            max_in_flight=asking.told,
            epoch=self._controller.epoch,
            closed_s=max(0.0, self._closed_until - now),
            refresh_s=self.refresh_s * (1 + REFRESH_SPREAD * (self._random() - 0.5)),
            valid_s=self.valid_s,
            bound_by=self._bound_by(now) if standing.waiting.requests else None,
        )

    def leave(self, member: Hashable, now: float, standing: Standing | None = None) -> None:
        """A member is done: what its last standing says it has not used is there for others. Without one it is lost."""
        leaving = self._members.get(member)
        if leaving is None:
            return
        if standing is not None:
            self._hear(leaving, standing, now)
            for d, bucket in self._buckets.items():
                if d in leaving.limited:
                    left = leaving.left(d)
                    if left > 0:
                        bucket.put_back(left)
                    else:
                        bucket.take(-left)
        del self._members[member]
        self._swept_at = -math.inf

    def expire(self, now: float) -> None:
        """Forgets members that have been silent for so long that their grants are void."""
        silent = [key for key, one in self._members.items() if now - one.heard_at > FORGOTTEN_AFTER * self.valid_s]
        for key in silent:
            self.leave(key, now)

    def limit(self, seen: Limits, now: float) -> None:
        """Takes what the endpoint's headers say; the tighter of that and the user's own limits binds."""
        self._limits = tighter(self._configured, seen)
        self._controller.cap(self._most_in_flight())
        self._set_rates(now)

    def state(self, now: float) -> PoolState:
        """What a display wants to know."""
        self._fade(now)
        limits = self._rates_allowed()
        return PoolState(
            bound_by=self._bound_by(now),
            used={WORDS[d]: self._use[d] / limit for d, limit in enumerate(limits) if limit},
            throttled=self._throttled,
            in_flight=sum(one.standing.in_flight for one in self._members.values()),
            window=int(self._controller.window),
            members=len(self._members),
        )

    @property
    def refresh_s(self) -> float:
        """How often a member reports."""
        least_s = REFRESH_AT_START_S if self._controller.is_in_haste else REFRESH_S
        return max(least_s, len(self._members) / MEMBERS_PER_REFRESH_S)

    @property
    def valid_s(self) -> float:
        """How long a grant is good."""
        return max(VALID_S, VALID_REFRESHES * self.refresh_s)

    # Hearing

    def _hear(self, member: Member, standing: Standing, now: float) -> None:
        before, controller = member.standing, self._controller
        since, member.heard_at = member.heard_at, now
        if standing.number <= before.number:
            return
        more_returned = [latest - earlier for latest, earlier in zip(returned(standing), returned(before), strict=True)]
        for d, bucket in self._buckets.items():
            if more_returned[d] > 0:
                bucket.refill(now)
                bucket.put_back(more_returned[d])
        self._fade(now)
        for d, (latest, earlier) in enumerate(zip(spent(standing), spent(before), strict=True)):
            self._use[d] += (latest - earlier) / USE_OVER_S
        member.standing = standing

        throttled = standing.throttled - before.throttled
        controller.sent(since, now, int(standing.spent.requests - before.spent.requests), throttled)
        self._throttled += throttled
        if (standing.epoch, standing.throttled_in_epoch) > (before.epoch, before.throttled_in_epoch):
            controller.throttled(now, standing.epoch)
        if standing.retry_after_s is not None:
            self._closed_until = max(self._closed_until, now + standing.retry_after_s)
        if standing.seen is not None and standing.seen != before.seen:
            self.limit(standing.seen, now)
        limit_binds = now - self._binding_at <= BINDS_FOR_S
        controller.step(
            now,
            replies=standing.accepted - before.accepted,
            latency_s=standing.latency_s - before.latency_s,
            in_flight=self._slots.in_flight + standing.in_flight - before.in_flight,
            waiting=self._slots.waiting or standing.waiting.requests > 0,
            limit_binds=limit_binds or now < self._closed_until,
            rate_binds=limit_binds and self._binding == REQUESTS and self._paced_by_controller(),
        )
        self._slots.in_flight += standing.in_flight - before.in_flight

    def _fade(self, now: float) -> None:
        elapsed = now - self._used_at
        if elapsed > 0:
            kept = math.exp(-elapsed / USE_OVER_S)
            self._use = [use * kept for use in self._use]
            self._used_at = now

    # Rates

    def _rates_allowed(self) -> tuple[float | None, ...]:
        """The limits that are known, per second."""
        return tuple(None if limit is None else limit / 60 * self._share for limit in per_minute(self._limits))

    def _paced_by_controller(self) -> bool:
        rate, allowed = self._controller.rate, self._rates_allowed()[REQUESTS]
        return rate is not None and (allowed is None or rate < allowed)

    def _set_rates(self, now: float) -> None:
        rates = list(self._rates_allowed())
        if self._paced_by_controller():
            rates[REQUESTS] = self._controller.rate
        for d, rate in enumerate(rates):
            if rate is None:
                self._buckets.pop(d, None)
                continue
            bucket = self._buckets.get(d)
            if bucket is None:
                first = 1.0 if d == REQUESTS else 0.0
                self._buckets[d] = Bucket(rate, max(first, BURST_S * rate), max(first, FIRST_LEVEL_S * rate), now)
            else:
                bucket.refill(now)
                bucket.rate = rate

    def _sweep(self, now: float) -> None:
        """Looks at all members: what they are due, and what of it is kept back for them."""
        late_before = now - 2 * self.refresh_s - LATE_S
        self._asking = asking = [one for one in self._members.values() if one.asks and one.heard_at >= late_before]
        step = min(now - self._swept_at, 2 * self.refresh_s) / len(asking) if asking else 0.0
        self._swept_at = now
        self._kept_back = zeros()
        lacking = [1.0, 0.0, 0.0, 0.0]
        for one in asking:
            due_s = max(one.asked[d] / bucket.rate for d, bucket in self._buckets.items()) if self._buckets else 0.0
            one.claim_s = min(one.claim_s + step, due_s)
            for d, bucket in self._buckets.items():
                self._kept_back[d] += one.kept_back(d, bucket.rate)
                lacking[d] = max(lacking[d], one.lacks[d])
        for d, bucket in self._buckets.items():
            bucket.capacity = lacking[d] + BURST_S * bucket.rate

        self._slots.sweep(self._members.values(), self._window)

    def _grant_rates(self, member: Member) -> None:
        standing, buckets = member.standing, self._buckets
        limited = frozenset(buckets)
        for d in limited - member.limited:
            member.granted[d] = spent(standing)[d] + returned(standing)[d]
        # Requests are spent one by one, so more than was granted was spent before there was a limit: forgotten.
        member.granted[REQUESTS] = max(member.granted[REQUESTS], standing.spent.requests + standing.returned.requests)
        member.limited = limited
        wanted, smallest = vector(standing.wanted), vector(standing.smallest)
        asked = zeros()
        lacks = zeros()
        for d in limited:
            left = member.left(d)
            asked[d] = max(0.0, wanted[d] - left)
            lacks[d] = max(0.0, smallest[d] - left)
            if d in self._untouched:  # or the first request would be waited for as long as its tokens take to flow in
                buckets[d].level = max(buckets[d].level, lacks[d])
        given, borrowed = self._what_is_there_for(member, asked, lacks)
        cost_s = 0.0
        for d, bucket in buckets.items():
            self._kept_back[d] -= member.kept_back(d, bucket.rate)
            bucket.take(given[d])
            if given[d]:
                self._untouched.discard(d)
            member.granted[d] += given[d]
            cost_s = max(cost_s, given[d] / bucket.rate)
        member.claim_s = member.claim_s - cost_s if borrowed else max(min(member.claim_s, 0.0), member.claim_s - cost_s)
        member.asked = asked
        member.lacks = [max(0.0, lack - give) for lack, give in zip(lacks, given, strict=True)]
        for d, bucket in buckets.items():
            self._kept_back[d] += member.kept_back(d, bucket.rate)

    def _what_is_there_for(self, member: Member, asked: list[float], lacks: list[float]) -> tuple[list[float], bool]:
        """What a member is given of what it asks; and whether that is more than what others are due leaves.

        Never less than its smallest request needs, or nothing at all: pieces in many hands would help nobody.
        """
        buckets = self._buckets
        nothing = zeros()
        if not any(asked):
            return nothing, False
        part = 1.0
        free = zeros()
        for d, bucket in buckets.items():
            own = member.kept_back(d, bucket.rate)
            others = max(0.0, self._kept_back[d] - own)
            # When the bucket overflows, more is due than there is: then each has its part of what there is.
            free[d] = max(0.0, bucket.level - others, bucket.level * own / (own + others) if own else 0.0)
            if asked[d] > 0 and free[d] < part * asked[d]:
                part = free[d] / asked[d]
                if member.standing.in_flight < member.told:  # else it waits for a slot, and only looks ahead
                    self._binding, self._binding_at = d, member.heard_at
        given = [part * ask for ask in asked]
        if all(given[d] >= lacks[d] - TOLERANCE for d in buckets):
            return given, False
        if all(free[d] >= lacks[d] - TOLERANCE for d in buckets):
            return lacks, False
        ahead = [one for one in self._asking if one is not member and one.claim_s > member.claim_s]
        for d, bucket in buckets.items():
            if bucket.level < lacks[d] + sum(one.lacks[d] for one in ahead) - TOLERANCE:
                return nothing, False
        return lacks, True

    # Slots

    def _most_in_flight(self) -> float | None:
        most = self._limits.max_concurrency
        return None if most is None else max(1, int(most * self._share))

    @property
    def _window(self) -> int:
        return max(1, int(self._controller.window))

    # Words

    def _bound_by(self, now: float) -> str | None:
        if now < self._closed_until:
            return "a pause that the endpoint asked for"
        if now - self._binding_at <= BINDS_FOR_S and self._binding is not None:
            words, rate = WORDS[self._binding], self._controller.rate
            if self._binding == REQUESTS and self._paced_by_controller() and rate is not None:
                return f"{words} (found by the controller: {60 * rate:,.0f})"
            return words
        if self._slots.waiting and self._slots.in_flight >= 0.8 * self._window:
            if self._controller.is_capped:
                return f"requests in flight ({self._window})"
            return f"requests in flight (found by the controller: {self._window})"
        return None

"""Owns the division of requests in flight among the members of a pool. Pure; does not decide how many there are.

What others were told, or still have in flight, is not given again: all that is told never exceeds the window, but for
what is in flight already when the window shrinks.

On the driver.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable

from batch_infer.engine.budget.member import Member

HEADROOM = 0.5
"""Share of its part of the unwanted slots that a member may use unasked. The rest is there for newcomers."""
TURN_S = 1.0
"""Seconds that a member keeps a slot for which another waits, when there are fewer slots than members."""


class Slots:
    """Who may have how many requests in flight.

    Attributes:
        in_flight: Of all members together, as they told last.
        waiting: Whether any of them would send more.
    """

    def __init__(self) -> None:
        self.in_flight = 0
        self.waiting = False
        self._members: Collection[Member] = ()
        self._level, self._extra = math.inf, 0.0
        self._held = 0
        self._claimed = 0
        self._starving = 0
        self._yielding = 0

    def sweep(self, members: Collection[Member], window: int) -> None:
        """Looks at all members."""
        self._members = members
        self._level, self._extra = max_min(window, [one.slots_wanted for one in members])
        self._held = sum(one.slots_held for one in members)
        self._claimed = sum(self._claimed_by(one) for one in members)
        self._starving = sum(one.starves for one in members)
        self._yielding = sum(one.yields for one in members)
        self.in_flight = sum(one.standing.in_flight for one in members)
        self.waiting = any(one.standing.waiting.requests for one in members)

    def grant(self, member: Member, window: int, now: float) -> None:
        """Sets what a member is told: its max-min fair part, as far as it is free."""
        held_before, starved_before, yielded_before = member.slots_held, member.starves, member.yields
        claimed_before = self._claimed_by(member)
        fair = self._fair(member)
        free = max(0, window - (self._held - held_before))
        to_spare = window - (self._claimed - claimed_before)
        told = min(free, max(math.floor(fair), min(math.ceil(fair), to_spare)))
        if self._level < 1:
            told = min(told, self._turn(member, free, now))
        if bool(told) != bool(member.told):
            member.turn_from = now
        member.told = told
        self._held += member.slots_held - held_before
        self._claimed += self._claimed_by(member) - claimed_before
        self._starving += member.starves - starved_before
        self._yielding += member.yields - yielded_before

    def _fair(self, member: Member) -> float:
        return min(member.slots_wanted, self._level) + HEADROOM * self._extra

    def _claimed_by(self, member: Member) -> int:
        """What a member holds, or is due in whole slots, if that is more."""
        return max(member.slots_held, math.floor(self._fair(member)))

    def _turn(self, member: Member, free: int, now: float) -> int:
        """Fewer slots than members: each has one for a while, and the one that has waited longest is next."""
        if member.slots_held:
            return int(now - member.turn_from < TURN_S or self._starving <= self._yielding)
        earlier = sum(one.starves and one.turn_from < member.turn_from for one in self._members)
        return int(earlier < free)


def max_min(total: float, demands: Iterable[float]) -> tuple[float, float]:
    """The level and the extra at which `min(demand, level) + extra`, summed over all, is `total`.

    Args:
        total: What there is; 0 or more.
        demands: What each wants; 0 or more.

    Returns:
        The level; infinite when there is enough for all. The extra: what is over then, divided equally.
    """
    left = total
    ordered = sorted(demands)
    for index, demand in enumerate(ordered):
        share = left / (len(ordered) - index)
        if demand >= share:
            return share, 0.0
        left -= demand
    return math.inf, left / max(1, len(ordered))

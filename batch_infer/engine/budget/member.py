"""Owns what a pool knows of one of its members. Does not decide what a member gets. On the driver."""

from __future__ import annotations

from batch_infer.contract.limits import Standing
from batch_infer.engine.budget.dimensions import Vector, of_record, vector, zeros


class Member:
    """One task attempt."""

    def __init__(self, standing: Standing, now: float) -> None:
        self.granted = zeros()
        self.limited: frozenset[int] = frozenset()
        self.asked = zeros()
        """Beyond what it had, when it was heard last: it is taken to ask for as much again."""
        self.lacks = zeros()
        """What it lacks for its smallest request."""
        self.claim_s = 0.0
        """Its share of what has flowed in since it asked, in seconds of the whole flow; negative: it was given more."""
        self.told = 0
        """Requests that it may have in flight."""
        self.turn_from = now
        """Since when it has slots, or waits for one."""
        self.standing = standing
        self.heard_at = now

    @property
    def slots_wanted(self) -> float:
        """Requests that it would have in flight if it could."""
        return self.standing.in_flight + self.standing.waiting.requests

    @property
    def slots_held(self) -> int:
        """Requests that it may have in flight, or still has."""
        return max(self.told, self.standing.in_flight)

    @property
    def starves(self) -> bool:
        """Whether it waits and has no slot at all."""
        return not self.slots_held and self.standing.waiting.requests > 0

    @property
    def yields(self) -> bool:
        """Whether it gives up its slots when what it has in flight comes home."""
        return not self.told and self.standing.in_flight > 0

    @property
    def asks(self) -> bool:
        """Whether it wanted more than it had, when it was heard last."""
        return any(self.asked)

    def left(self, d: int) -> float:
        """What it may still spend, as far as it has told; negative is a debt."""
        return self.granted[d] - spent(self.standing)[d] - returned(self.standing)[d]

    def kept_back(self, d: int, rate: float) -> float:
        """What is kept back for it of a bucket that fills at `rate`."""
        return max(0.0, min(self.asked[d], self.claim_s * rate))


def spent(standing: Standing) -> Vector:
    """What was spent, dimension by dimension."""
    return vector(standing.spent)


def returned(standing: Standing) -> Vector:
    """What was returned, dimension by dimension."""
    return tuple([value or 0.0 for value in of_record(standing.returned)])

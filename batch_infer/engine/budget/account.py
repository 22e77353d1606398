"""Owns the arithmetic of one task's part of a budget: granted, spent, returned, and the pace of spending. Pure.

What may still be spent is granted - spent - returned, dimension by dimension. Each of the three is cumulative, so a
message that is lost or comes twice changes nothing.

On workers.
"""

from __future__ import annotations

from collections.abc import Sequence

from batch_infer.contract.limits import Dimensions, Grant
from batch_infer.engine.budget.dimensions import DIMENSIONS, Vector, of_record, zeros

TOLERANCE = 1e-6
"""Amount that floating-point sums may be short of."""
CATCH_UP_S = 0.02
"""Seconds that the pace may lag and still catch up at once. Timers are late by a few milliseconds."""
SAVED_SHARE = 0.5
"""Share of new grants that is saved for a request too large for what is there. The rest lets smaller ones pass."""
KEPT = 1.34
"""A task keeps this multiple of what it wants and returns the rest. Above 1, so that grants do not oscillate."""


RATE_WEIGHT = 0.5
"""Weight of the time since the last look in the running rate of use."""


class Recent:
    """How fast a task has been spending, lately."""

    def __init__(self) -> None:
        self.per_second = zeros()
        self._spent = zeros()
        self._at: float | None = None

    def note(self, spent: Sequence[float], now: float) -> None:
        """Takes a look at what has been spent since the beginning."""
        elapsed = now - self._at if self._at is not None else 0.0
        if elapsed > 0:
            for d in DIMENSIONS:
                rate = max(0.0, spent[d] - self._spent[d]) / elapsed
                self.per_second[d] += RATE_WEIGHT * (rate - self.per_second[d])
        if elapsed > 0 or self._at is None:
            self._spent = [*spent]
            self._at = now


class Account:
    """One task's part. Not thread-safe; all times are the caller's clock, in seconds."""

    def __init__(self) -> None:
        self.spent = zeros()
        self.limited: tuple[int, ...] = ()
        """The dimensions that are limited in rate."""
        self.opens_at = 0.0
        """When the pace allows the next request."""
        self._granted = zeros()
        self._returned = zeros()
        self._saved = zeros()
        self._seconds_each = zeros()

    @property
    def returned(self) -> Dimensions:
        """What was declared to be returned."""
        return Dimensions(*self._returned)

    def left(self, dimension: int) -> float:
        """What may still be spent; negative is a debt."""
        return self._granted[dimension] - self.spent[dimension] - self._returned[dimension]

    def fits(self, need: Vector, *, ahead: bool = False) -> bool:
        """Whether there is enough. `ahead`: leaving alone what is saved for a larger request that waits longer."""
        return all(need[d] <= self.left(d) - (self._saved[d] if ahead else 0.0) + TOLERANCE for d in self.limited)

    def spend(self, need: Vector, now: float) -> None:
        """Takes what one request needs, and moves the pace."""
        spent = self.spent
        for d in DIMENSIONS:
            spent[d] += need[d]
        if self.limited:
            seconds = max(need[d] * self._seconds_each[d] for d in self.limited)
            self.opens_at = max(self.opens_at, now - CATCH_UP_S) + seconds

    def correct(self, need: Vector, used: Vector, saving_for: Vector | None) -> None:
        """What one request used takes the place of what was set aside for it."""
        for d in DIMENSIONS:
            self.spent[d] += used[d] - need[d]
            self._save(d, need[d] - used[d], saving_for)

    def end_saving(self) -> None:
        """The request that was saved for has been sent, or is gone."""
        self._saved = zeros()

    def take(self, grant: Grant, now: float, saving_for: Vector | None) -> None:
        """Takes a grant: it is spread over `grant.refresh_s`."""
        self.limited = ()
        for d, granted in enumerate(of_record(grant)):
            if granted is None:
                continue
            self.limited += (d,)
            more = granted - self._granted[d]
            if more > 0:
                self._granted[d] = granted
                self._save(d, more, saving_for)
            left = self.left(d)
            self._seconds_each[d] = grant.refresh_s / left if left > 0 else 0.0
        self.opens_at = min(self.opens_at, now + grant.refresh_s)

    def hand_back(self, wanted: Vector) -> None:
        """Declares what is not wanted as returned: from now on it is not spent."""
        for d in self.limited:
            excess = self.left(d) - KEPT * wanted[d]
            if excess > TOLERANCE:
                self._returned[d] += excess

    def _save(self, d: int, more: float, saving_for: Vector | None) -> None:
        if saving_for is not None and more > 0:
            self._saved[d] = min(saving_for[d], self._saved[d] + SAVED_SHARE * more)

"""Owns a token bucket. Does not wait, and does not know what is in it. On the driver."""

from __future__ import annotations


class Bucket:
    """Fills at a rate, up to a capacity. It may go into debt; nothing is forgiven, and fractions are kept.

    Contract: whatever is called in whatever order, what is taken less what is put back never exceeds
    `rate * elapsed + first level + the debt allowed by the caller`.

    Args:
        per_second: The rate.
        capacity: What it holds at most.
        level: What it holds at first.
        now: The caller's clock, in seconds; later calls use the same one.
    """

    __slots__ = ("_at", "capacity", "level", "rate")

    def __init__(self, per_second: float, capacity: float, level: float, now: float) -> None:
        self.rate = per_second
        self.capacity = capacity
        self.level = min(level, capacity)
        self._at = now

    def refill(self, now: float) -> None:
        """Adds what has flowed in. A clock that goes back adds nothing."""
        if now > self._at:
            # What is above a capacity that has shrunk stays.
            self.level = max(self.level, min(self.capacity, self.level + (now - self._at) * self.rate))
            self._at = now

    def take(self, amount: float) -> None:
        """Takes; the caller has looked at `level`, or means to run up a debt."""
        self.level -= amount

    def put_back(self, amount: float) -> None:
        """Puts back what was taken and not used; what does not fit is lost."""
        self.level = max(self.level, min(self.capacity, self.level + amount))

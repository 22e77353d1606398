"""Owns the guess how long a reply will be, learned from the replies so far. Does not count what was billed."""

from __future__ import annotations

import math

KNOWN_AFTER = 10
"""Replies that a guess needs; until then the most that a reply can have is reserved."""
WEIGHT = 0.05
"""Of one reply in the running mean, once the first replies are averaged: the last 40 or so count."""
DEVIATIONS = 2.0


class OutputEstimate:
    """Completion tokens to reserve for a reply: mean + 2 deviations of recent ones, at most `most`.

    Args:
        most: What a reply can have at most (`max_tokens`).
    """

    def __init__(self, most: float) -> None:
        self._most = most
        self._replies = 0
        self._mean = 0.0
        self._variance = 0.0

    def learn(self, completion_tokens: float) -> None:
        """Takes note of one reply's length."""
        self._replies += 1
        weight = max(WEIGHT, 1 / self._replies)
        gap = completion_tokens - self._mean
        self._mean += weight * gap
        self._variance = (1 - weight) * (self._variance + weight * gap * gap)

    @property
    def tokens(self) -> float:
        """What to reserve for the next reply."""
        if self._replies < KNOWN_AFTER:
            return self._most
        return min(self._most, self._mean + DEVIATIONS * math.sqrt(self._variance))

"""Owns token estimates: of a prompt before it is sent, of a reply from the replies so far. On driver and workers.

Does not count what was billed: replies say that.

Source: OpenAI's rule of thumb, about 4 characters of English a token; scripts without spaces take about one token a
character, so characters beyond U+02FF count as one token each.
"""

from __future__ import annotations

import math

CHARS_PER_TOKEN = 4
"""Characters of a token in scripts with spaces."""
TOKENS_PER_MESSAGE = 4
"""Tokens that a message has beside its text."""
TOKENS_PER_IMAGE = 1600
"""Tokens of the largest image that a provider scales to (Databricks: about 1,600)."""
DEFAULT_COMPLETION_TOKENS = 512
"""Tokens reserved for a reply when no `max_tokens` bounds it."""


def estimate_prompt_tokens(content: str | bytes, files: int = 0) -> int:
    """A quick estimate, at least 1; never used for billing."""
    if content.isascii():
        text = len(content) // CHARS_PER_TOKEN
    elif isinstance(content, bytes):
        text = len(content) // 3
    else:
        utf8 = len(content.encode())
        wide = (utf8 - len(content)) // 2  # 2 further bytes mark a character of most non-Latin scripts
        text = max(0, len(content) - wide) // CHARS_PER_TOKEN + wide
    return text + TOKENS_PER_MESSAGE + files * TOKENS_PER_IMAGE


KNOWN_AFTER = 10
"""Replies from which on sizes are known; until then the most that a reply can have is reserved."""
WEIGHT = 0.05
"""Weight of one reply in the running mean, once the first ones are averaged: the last 40 or so count."""
DEVIATIONS = 2.0
"""Standard deviations above the mean that are reserved."""


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

"""Owns what replies take: how long without a queue, and whether they queue now. Pure.

Lengths of replies vary, so single latencies say little: means over blocks of replies are compared. And what finishes
first is short, so the first ones are judged mildly.

On the driver.
"""

from __future__ import annotations

import math
from collections import deque

BLOCK = 32
"""Replies whose mean latency is looked at; the mean of 32 with a log-normal spread of 0.5 is off by 10%."""
FIRST_BLOCK = 4
MAY_QUEUE_FROM = 8
EARLY = 2.0
"""Replies count as queued when their mean latency exceeds this multiple of the first replies' mean."""
LATE = ((4, 1.5), (12, 1.6))
"""At a small window: how many of the latest replies must take how many times as long as the first. By the first pair
they may queue, by the second they do."""
REMEMBERED_S = 150.0
"""The least mean of a block is what replies take when they do not queue. It is remembered for one to two such times,
since prompts change."""
QUEUE_S = 0.05
"""A queue that short harms nobody; without it an endpoint that answers in 2 ms would be held at a tiny window."""


class Latencies:
    """What replies take. All times are the caller's clock, in seconds.

    Attributes:
        mean_s: Of the latest replies; 0 before the first one.
    """

    def __init__(self, now: float) -> None:
        self.mean_s = 0.0
        self._first_s: float | None = None
        self._least_s: float | None = None
        self._least_before_s: float | None = None
        self._least_since = now
        self._replies = 0
        self._sum_s = 0.0
        self._latest: deque[tuple[int, float]] = deque()
        self._latest_replies = 0

    def add(self, now: float, replies: int, latency_s: float) -> None:
        """Takes note of replies; `latency_s` is their sum."""
        self._latest.append((replies, latency_s))
        self._latest_replies += replies
        while self._latest_replies - self._latest[0][0] >= LATE[-1][0]:
            self._latest_replies -= self._latest.popleft()[0]
        self._replies += replies
        self._sum_s += latency_s
        mean_s = self._sum_s / self._replies
        if self._replies < BLOCK and self._least_s is None:
            self.mean_s = mean_s
            if self._first_s is None and self._replies >= FIRST_BLOCK:
                self._first_s = mean_s
                self._replies, self._sum_s = 0, 0.0
        elif self._replies >= BLOCK:
            if now - self._least_since > REMEMBERED_S:
                self._least_before_s, self._least_s, self._least_since = self._least_s, None, now
            if self._least_s is None and self._first_s is not None and self._far_above(mean_s, self._first_s, EARLY):
                self._least_s = self._first_s
            self._least_s = min(self._least_s or math.inf, mean_s)
            self.mean_s = mean_s
            self._replies, self._sum_s = 0, 0.0

    @property
    def unqueued_s(self) -> float | None:
        """What a reply takes when it does not queue, as far as was seen."""
        known = [least for least in (self._least_s, self._least_before_s) if least is not None]
        return min(known) if known else self._first_s

    def queue(self, times: float) -> bool:
        """Whether replies take that many times as long as without a queue."""
        least_s = self._least_s if self._least_before_s is None else self.unqueued_s
        return least_s is not None and self._far_above(self.mean_s, least_s, times)

    @property
    def may_queue(self) -> bool:
        """Whether the first replies look so. Decided when a block is full."""
        if self._least_s is not None or self._first_s is None or self._replies < MAY_QUEUE_FROM:
            return False
        return self._far_above(self.mean_s, self._first_s, EARLY)

    def are_late(self, *, surely: bool = False) -> bool:
        """Whether the latest few replies took much longer than the first ones; `surely`: more of them, and longer."""
        wanted, times = LATE[surely]
        replies, sum_s = 0, 0.0
        for count, latency_s in reversed(self._latest):
            replies, sum_s = replies + count, sum_s + latency_s
            if replies >= wanted:
                return self._first_s is not None and self._far_above(sum_s / replies, self._first_s, times)
        return False

    def _far_above(self, mean_s: float, least_s: float, times: float) -> bool:
        return mean_s > max(times * least_s, least_s + QUEUE_S)

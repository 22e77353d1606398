"""Owns the search for what an endpoint can take: a window of requests in flight, and after throttles a paced rate.

Endpoints that limit rates need a paced rate; endpoints that limit slots need a window. So there are both:

1. The window starts at 8 and grows with every accepted request while it is used (slow start).
2. Slow start ends with a throttle, when replies take much longer than at first (they queue), or when a larger window
   has not brought more replies for 3 rounds. The window then is 1.5 times what the best rate keeps busy.
3. The first throttle of an epoch cuts the rate to 0.97 of what was accepted lately, for 10 s. What was sent before the
   last cut says nothing new. Afterwards the rate is probed upwards, faster and faster, while it is what binds.
4. A window that binds is tried larger, and where replies queue smaller; it stays when the rate of replies says so.

Nothing grows while the application is what limits.

Does no I/O and reads no clock. Source: a simulated comparison of AIMD, botocore's CUBIC, Netflix's gradients and this
hybrid; BBR for "the pipe is full".
"""

from __future__ import annotations

import math
from collections import deque
from enum import Enum

FIRST_WINDOW = 8.0
DOUBLING_UP_TO = 32.0
"""Window up to which slow start doubles it every round; then it grows by half, so that a queue is noticed in time."""
HEADROOM = 1.5
"""Times the requests that the best rate keeps in flight without queueing."""
QUEUE_S = 0.05
"""A queue that short harms nobody; without it an endpoint that answers in 2 ms would be held at a tiny window."""
QUEUED = 1.5
"""Times the shortest latency from which on replies are taken to queue. Below that, lengths of replies vary so much."""
QUEUED_AT_CAP = 3.0
"""The same where the window is the user's own `max_concurrency`: it is left only for clear reasons."""

BLOCK = 32
"""Replies whose mean latency is looked at; the mean of 32 with a log-normal spread of 0.5 is off by 10%."""
BLOCKS_KEPT = 24
"""Of which the least is what replies take when they do not queue; older ones are forgotten, since prompts change."""

ROUND_S = 1.0
ROUND_LATENCIES = 1.5
FLAT_GROWTH = 1.15
FLAT_ROUNDS = 3

CUT = 0.97
HOLD_S = 10.0
RATE_OVER_S = 3.0
"""Seconds over which the accepted rate is measured at a throttle."""
LEAST_RATE = 0.02
"""Requests per second: the cut never ends the search."""
GROWTH_PER_S = 0.01
GROWTH_DOUBLES_S = 5.0
"""The growth of the rate is 1% a second, and 1% a second more every so many seconds, at most 10%."""
MOST_GROWTH_PER_S = 0.10

TRIAL_REPLIES = 100
"""Replies that a trial of a window is judged by, within `TRIAL_LONGEST_S`."""
TRIAL_S = 1.0
TRIAL_LATENCIES = 2.0
TRIAL_LONGEST_S = 30.0
LARGER = 1.25
SMALLER = 0.8
WORTH_IT = 1.08
"""Times the rate that a window 1.25 as large must bring."""
NO_LOSS = 0.97
"""Times the rate that a window 0.8 as large must keep."""
PAUSE_S = 5.0
LONGEST_PAUSE_S = 60.0
"""Between trials: the first pause, doubled after every one that failed, up to the second."""


class _Trial(Enum):
    AS_IS = "as it is"
    LARGER = "larger"
    SMALLER = "smaller"


class Controller:
    """What one endpoint can take, as far as is known.

    Args:
        now: The caller's clock, in seconds.
        most: The user's own `max_concurrency`; `None`: none.

    Attributes:
        window: Requests that may be in flight.
        rate: Requests per second that may be sent; `None`: no throttle has been seen.
        epoch: Grows with every cut of the rate.
    """

    def __init__(self, now: float, most: float | None = None) -> None:
        self.most = most
        self.window = min(FIRST_WINDOW, most) if most is not None else FIRST_WINDOW
        self.rate: float | None = None
        self.epoch = 0
        self._starting = True
        self._at = now
        self._hold_until = -math.inf
        self._accepts: deque[tuple[float, int]] = deque()
        self._first_accept_at: float | None = None

        self._blocks: deque[float] = deque(maxlen=BLOCKS_KEPT)
        self._block_replies = 0
        self._block_latency_s = 0.0
        self._latency_s: float | None = None

        self._round_from = now
        self._round_replies = 0
        self._round_window = self.window
        self._best_rate = 0.0
        self._flat_rounds = 0

        self._trial = _Trial.AS_IS
        self._trial_from = now
        self._trial_replies = 0
        self._untried_window = self.window
        self._untried_rate = 0.0
        self._next_trial_at = now
        self._pause_s = PAUSE_S
        self._last_tried = _Trial.SMALLER

    @property
    def is_capped(self) -> bool:
        """Whether the window is as large as the user allows."""
        return self.most is not None and self.window >= self.most

    def accepted(self, now: float, replies: int, latency_s: float) -> None:
        """Takes note of replies that were not throttles; `latency_s` is their sum."""
        if replies <= 0:
            return
        if self._first_accept_at is None:
            self._first_accept_at = self._at
        self._accepts.append((now, replies))
        self._round_replies += replies
        self._trial_replies += replies
        self._block_replies += replies
        self._block_latency_s += latency_s
        if self._block_replies >= BLOCK:
            self._latency_s = self._block_latency_s / self._block_replies
            self._blocks.append(self._latency_s)
            self._block_replies, self._block_latency_s = 0, 0.0
        elif self._latency_s is None:
            self._latency_s = latency_s / replies

    def throttled(self, now: float, epoch: int) -> None:
        """Takes note of a throttle of a request that was sent under `epoch`."""
        if epoch < self.epoch:
            return
        self.epoch = epoch + 1
        accepted = self.accepted_per_s(now)
        rate = min(self.rate, accepted) if self.rate is not None else accepted
        if not accepted:
            rate = 0.5 * (self.rate if self.rate is not None else self.window / max(1.0, self._latency_s or 1.0))
        self.rate = max(LEAST_RATE, CUT * rate)
        self._hold_until = now + HOLD_S
        if self._starting:
            self._end_start(now)

    def accepted_per_s(self, now: float) -> float:
        """The rate of accepted requests, lately."""
        while self._accepts and self._accepts[0][0] <= now - RATE_OVER_S:
            self._accepts.popleft()
        if self._first_accept_at is None:
            return 0.0
        over_s = min(RATE_OVER_S, max(0.25, now - self._first_accept_at))
        return sum(replies for _, replies in self._accepts) / over_s

    def step(
        self, now: float, *, replies: int, in_flight: int, waiting: bool, limit_binds: bool, rate_binds: bool
    ) -> None:
        """Moves on.

        Args:
            now: The time.
            replies: Accepted since the last step.
            in_flight: Requests under way.
            waiting: Whether further ones would be sent if nothing held them back.
            limit_binds: Whether they wait for a rate, whoever set it.
            rate_binds: Whether it is this controller's rate.
        """
        elapsed, self._at = max(0.0, now - self._at), max(now, self._at)
        if self._starting:
            self._start(now, in_flight, replies)
        elif waiting and not limit_binds and in_flight >= 0.8 * math.floor(self.window):
            self._try_windows(now)
        else:
            self._break_off(now)
        if self.rate is not None and rate_binds and now > self._hold_until:
            growing_s = now - self._hold_until
            growth = min(MOST_GROWTH_PER_S, GROWTH_PER_S * (1 + growing_s / GROWTH_DOUBLES_S))
            self.rate *= math.exp(growth * min(elapsed, growing_s))

    # Slow start

    def _start(self, now: float, in_flight: int, replies: int) -> None:
        used = 2 * in_flight >= self.window
        if used and replies:
            gain = replies if self.window < DOUBLING_UP_TO else 0.5 * replies
            self.window = self._allowed(self.window + gain)
        if self.is_capped:
            self._flat_rounds = 0
        if self._queues():
            self._end_start(now)
        elif now - self._round_from >= max(ROUND_S, ROUND_LATENCIES * (self._latency_s or 0.0)):
            self._end_round(now, used)

    def _end_round(self, now: float, used: bool) -> None:
        rate = self._round_replies / (now - self._round_from)
        if self._round_replies >= BLOCK / 4:
            grew = self.window >= FLAT_GROWTH * self._round_window
            flat = used and grew and rate < FLAT_GROWTH * self._best_rate
            self._flat_rounds = self._flat_rounds + 1 if flat else 0
            self._best_rate = max(self._best_rate, rate)
            self._round_from, self._round_replies, self._round_window = now, 0, self.window
        if self._flat_rounds >= FLAT_ROUNDS:
            self._end_start(now)

    def _end_start(self, now: float) -> None:
        self._starting = False
        rate = max(self._best_rate, self.accepted_per_s(now))
        latency = self.unqueued_latency_s
        if latency is not None and rate > 0:
            self.window = self._allowed(min(self.window, max(HEADROOM * rate * latency, rate * (latency + QUEUE_S))))
        self._begin_trial(now, _Trial.AS_IS)
        self._next_trial_at = now

    @property
    def unqueued_latency_s(self) -> float | None:
        """What a reply takes when it does not queue, as far as was seen."""
        return min(self._blocks) if self._blocks else self._latency_s

    def _queues(self) -> bool:
        latency, least = self._latency_s, self.unqueued_latency_s
        if latency is None or least is None:
            return False
        return latency > max((QUEUED_AT_CAP if self.is_capped else QUEUED) * least, least + QUEUE_S)

    def _allowed(self, window: float) -> float:
        return max(1.0, min(window, self.most) if self.most is not None else window)

    # Steady

    def _try_windows(self, now: float) -> None:
        latency = self._latency_s or 0.0
        since = now - self._trial_from
        if since < 0:
            self._trial_replies = 0  # the requests under the former window are still coming home
            return
        enough = self._trial_replies >= TRIAL_REPLIES or since >= TRIAL_LONGEST_S
        if not enough or since < max(TRIAL_S, TRIAL_LATENCIES * latency):
            return
        rate = self._trial_replies / since
        if self._trial is _Trial.AS_IS:
            self._untried_window, self._untried_rate = self.window, rate
            trial = self._next_trial(now)
            factor = {_Trial.AS_IS: 1.0, _Trial.LARGER: LARGER, _Trial.SMALLER: SMALLER}[trial]
            if trial is _Trial.LARGER:
                self.window = self._allowed(max(self.window * factor, self.window + 1))
            elif trial is _Trial.SMALLER:
                self.window = self._allowed(min(self.window * factor, self.window - 1))
            self._begin_trial(now, trial)
            return
        needed = WORTH_IT if self._trial is _Trial.LARGER else NO_LOSS
        if rate >= needed * self._untried_rate:
            self._pause_s = PAUSE_S
            self._next_trial_at = now
        else:
            self.window = self._untried_window
            self._pause_s = min(LONGEST_PAUSE_S, 2 * self._pause_s)
            self._next_trial_at = now + self._pause_s
            self._last_tried = self._trial
        self._begin_trial(now, _Trial.AS_IS)

    def _next_trial(self, now: float) -> _Trial:
        if now < self._next_trial_at:
            return _Trial.AS_IS
        if self._queues() and (self.is_capped or self._last_tried is not _Trial.SMALLER) and self.window > 1:
            return _Trial.SMALLER
        return _Trial.AS_IS if self.is_capped else _Trial.LARGER

    def _begin_trial(self, now: float, trial: _Trial) -> None:
        self._trial = trial
        self._trial_replies = 0
        self._trial_from = now if trial is _Trial.AS_IS else now + (self._latency_s or 0.0)

    def _break_off(self, now: float) -> None:
        if self._trial is not _Trial.AS_IS:
            self.window = self._untried_window
        self._begin_trial(now, _Trial.AS_IS)

"""Owns the search for what an endpoint can take: a window of requests in flight, and after throttles a paced rate.

Endpoints that limit rates need a paced rate; endpoints that limit slots need a window. So there are both:

1. The window starts at 2 (at 8 where the user has set a limit) and grows with every accepted request while it is used
   (slow start).
2. Slow start ends with a throttle, when replies take much longer than at first (they queue), or when a larger window
   has not brought more replies for 3 rounds. The window then is 1.5 times what the best rate keeps busy.
3. The first throttle of an epoch cuts the rate to 0.97 of what was accepted lately, for 10 s. What was sent before the
   last cut says nothing new. Afterwards the rate is probed upwards, faster and faster, while it is what binds.
4. A window that binds is tried larger, and where replies queue smaller; it stays when the rate of replies says so.

Nothing grows while the application is what limits.

Does no I/O and reads no clock. Source: a simulated comparison of AIMD, botocore's CUBIC, Netflix's gradients and this
hybrid; BBR for "the pipe is full".

On the driver.
"""

from __future__ import annotations

import math
from collections import deque

from batch_infer.engine.budget.latency import QUEUE_S, Latencies
from batch_infer.engine.budget.probe import Trials

FIRST_WINDOW = 2.0
FIRST_WINDOW_TOLD = 8.0
"""The same where the user has set some limit of this endpoint: it is no server with two slots."""
DOUBLING_UP_TO = 16.0
"""Window up to which slow start doubles it every round; then it grows by half, so that a queue is noticed in time."""
HEADROOM = 1.5
"""Multiple of the requests that the best rate keeps in flight without queueing; the window that is set."""
QUEUED = 1.5
"""Replies count as queued when their mean latency exceeds this multiple of the shortest mean. Lengths of replies vary
by less."""
QUEUED_LONG = 2.5
"""Replies are queued beyond doubt when their mean latency exceeds this multiple of the shortest mean."""
QUEUED_AT_CAP = 3.0
"""The same where the window is the user's own `max_concurrency`: it is left only for clear reasons."""

ROUND_S = 1.0
ROUND_LATENCIES = 1.5
ROUND_REPLIES = 8
FLAT_GROWTH = 1.15
FLAT_ROUNDS = 3

CUT = 0.97
LEAST_CUT = 0.7
"""One cut never goes below that part of the rate: a measurement over so short a time may be off."""
BETWEEN_CUTS_S = 1.0
"""A cut needs some time to show; throttles before then are the same news again."""
EARLY_S = 2.0
EARLY_SENT = 64
"""A throttle so early, or after so few requests, tells of a burst, not of a rate: the search goes on, paced."""
DOUBLING_S = 1.0
"""The rate doubles in this time, or in the latency if that is longer, after such a throttle."""
HOLD_S = 10.0
RATE_OVER_S = 2.0
"""Seconds over which the admitted rate is measured at a throttle."""
RATE_AT_LEAST_OVER_S = 0.75
"""The same while the rate grows fast, and soon after a cut."""
RATE_REQUESTS = 20
RATE_AT_MOST_OVER_S = 60.0
"""The same where fewer requests than that are sent in such a time."""
NEWS_S = 0.25
"""Seconds after which all tasks have reported; rates are measured up to then."""
LEAST_RATE = 0.02
"""Requests per second: no cut ends the search."""
GROWTH_PER_S = 0.01
GROWTH_DOUBLES_S = 5.0
"""The growth of the rate is 1% a second, and 1% a second more every so many seconds, at most 10%."""
MOST_GROWTH_PER_S = 0.10
USED = 0.8
"""Part of the window in flight from which on the window is what binds: reports lag."""
UNBOUND_S = 1.0
"""Seconds for which something else may bind before a trial is broken off."""


class Controller:
    """What one endpoint can take, as far as is known.

    Args:
        now: The caller's clock, in seconds.
        most: The user's own `max_concurrency`; `None`: none.
        is_told: Whether the user has set a limit on requests or tokens.

    Attributes:
        window: Requests that may be in flight.
        rate: Requests per second that may be sent; `None`: no throttle has been seen.
        epoch: Grows with every cut.
    """

    def __init__(self, now: float, most: float | None = None, *, is_told: bool = False) -> None:
        self.window = FIRST_WINDOW if most is None and not is_told else FIRST_WINDOW_TOLD
        self.rate: float | None = None
        self.epoch = 0
        self._most = math.inf
        self._at = now
        self._latencies = Latencies(now)
        self._trials = Trials(now)

        self._bound_at = now
        self._starting = True
        self._used = True
        self._round_from = now
        self._round_replies = 0
        self._round_window = self.window
        self._best_rate = 0.0
        self._flat_rounds = 0

        self._cut_at = -math.inf
        self._hold_until = -math.inf
        self._admitted: deque[tuple[float, float, int]] = deque()
        self._first_sent_at: float | None = None
        self._sent = 0
        self.cap(most)

    def cap(self, most: float | None) -> None:
        """The window never exceeds `most`; `None`: whatever the endpoint can take."""
        self._most = math.inf if most is None else max(1.0, most)
        self.window = min(self.window, self._most)

    @property
    def is_capped(self) -> bool:
        """Whether the window is as large as the user allows."""
        return self.window >= self._most

    @property
    def is_starting(self) -> bool:
        """Whether slow start has not ended."""
        return self._starting

    @property
    def is_in_haste(self) -> bool:
        """Whether the window grows with every reply: news is worth more then."""
        return self._starting and self._used and not self.is_capped

    def sent(self, since: float, now: float, requests: int, throttled: int) -> None:
        """Takes note of requests that one task sent in a time, and of throttles that came back to it."""
        if self._first_sent_at is None:
            if not requests:
                return
            self._first_sent_at = since
        self._sent += requests
        while self._admitted and self._admitted[0][1] < now - RATE_AT_MOST_OVER_S - NEWS_S:
            self._admitted.popleft()
        if (requests or throttled) and since < now:
            self._admitted.append((since, now, requests - throttled))

    def throttled(self, now: float, epoch: int) -> None:
        """Takes note of a throttle of a request that was sent under `epoch`."""
        if epoch < self.epoch or now - self._cut_at < BETWEEN_CUTS_S:
            return
        self.epoch = epoch + 1
        if self._trials.tries_larger:
            self._cut_at = now
            self.window = self._trials.fail(now)
            return
        over_s = self._measured_over_s(now)
        admitted = self._admitted_per_s(now, over_s)
        if self.rate is not None:
            admitted = max(min(self.rate, admitted), LEAST_CUT * self.rate if over_s < RATE_OVER_S else 0.0)
        elif self._starting:
            # What is sent shows the endpoint's burst, what comes back is late: the truth lies between.
            admitted = math.sqrt(admitted * min(admitted, max(self._best_rate, self._round_rate(now))))
        is_early = self._starting and self.rate is None and self._is_early(now)
        if is_early:
            admitted = max(admitted, 0.5 * self.window / max(1.0, self._latencies.mean_s))
        self.rate = max(LEAST_RATE, CUT * admitted)
        self._cut_at = now
        self._hold_until = now + (DOUBLING_S if is_early else HOLD_S)
        if self._starting and not is_early:
            self._end_start(now)

    def _is_early(self, now: float) -> bool:
        return self._first_sent_at is None or now - self._first_sent_at < EARLY_S or self._sent < EARLY_SENT

    def _measured_over_s(self, now: float) -> float:
        """The time by which a rate is measured now."""
        if self.rate is None:
            return RATE_AT_LEAST_OVER_S
        wanted_s = min(RATE_AT_MOST_OVER_S, max(RATE_OVER_S, RATE_REQUESTS / self.rate))
        return max(RATE_AT_LEAST_OVER_S, min(wanted_s, now - NEWS_S - self._cut_at))

    def _admitted_per_s(self, now: float, over_s: float) -> float:
        """The rate of requests that were sent and not throttled, lately."""
        start, end = now - NEWS_S - over_s, now - NEWS_S
        admitted = 0.0
        for since, until, requests in reversed(self._admitted):
            if until < start:
                break
            admitted += requests * max(0.0, min(until, end) - max(since, start)) / (until - since)
        return max(0.0, admitted) / over_s

    def step(
        self,
        now: float,
        *,
        replies: int,
        latency_s: float,
        in_flight: int,
        waiting: bool,
        limit_binds: bool,
        rate_binds: bool,
    ) -> None:
        """Moves on.

        Args:
            now: The time.
            replies: That came since the last step and were not throttles.
            latency_s: Their latencies, summed.
            in_flight: Requests under way.
            waiting: Whether further ones would be sent if nothing held them back.
            limit_binds: Whether they wait for a rate, whoever set it.
            rate_binds: Whether it is this controller's rate.
        """
        elapsed, self._at = max(0.0, now - self._at), max(now, self._at)
        if replies > 0:
            self._latencies.add(now, replies, latency_s)
        if self._starting:
            self._start(now, in_flight, replies)
        else:
            self._try(now, replies, binds=waiting and not limit_binds and in_flight >= USED * int(self.window))
        if self.rate is not None and rate_binds and now > self._hold_until:
            growing_s = now - self._hold_until
            if self._starting:
                growth = math.log(2) / max(DOUBLING_S, self._latencies.mean_s)
            else:
                growth = min(MOST_GROWTH_PER_S, GROWTH_PER_S * (1 + growing_s / GROWTH_DOUBLES_S))
            self.rate *= math.exp(growth * min(elapsed, growing_s))

    def _try(self, now: float, replies: int, *, binds: bool) -> None:
        if binds:
            self._bound_at = now
        if now - self._bound_at > UNBOUND_S and not self._trials.is_settling(now):
            self.window = self._trials.break_off(now, self.window)
            return
        paced = self._window_for(self.rate) if self.rate is not None else None
        if binds and paced is not None and self.window < min(paced, self._most):
            # Throttles tell what this endpoint can take: the window is not to bind before the rate does.
            self._trials.break_off(now, self.window)
            self.window = min(paced, self._most)
        self.window = self._trials.step(
            now,
            self.window,
            replies,
            self._latencies.mean_s,
            queues=self._queue(),
            queues_long=self._latencies.queue(QUEUED_LONG),
            most=self._most,
        )

    def _queue(self) -> bool:
        return self._latencies.queue(QUEUED_AT_CAP if self.is_capped else QUEUED)

    # Slow start

    def _start(self, now: float, in_flight: int, replies: int) -> None:
        self._used = used = 2 * in_flight >= self.window
        self._round_replies += replies
        is_small = self.window < DOUBLING_UP_TO
        if used and not self._latencies.may_queue and not (is_small and self._latencies.are_late()):
            gain = replies if is_small else 0.5 * replies
            self.window = min(self.window + gain, self._most)
        if self._queue() or (is_small and self._latencies.are_late(surely=True)):
            self._end_start(now)
        elif now - self._round_from >= max(ROUND_S, ROUND_LATENCIES * self._latencies.mean_s):
            self._end_round(now, used)

    def _end_round(self, now: float, used: bool) -> None:
        if self._round_replies < ROUND_REPLIES:
            return
        rate = self._round_rate(now)
        grew = self.window >= FLAT_GROWTH * self._round_window
        is_flat = used and grew and rate < FLAT_GROWTH * self._best_rate
        self._flat_rounds = self._flat_rounds + 1 if is_flat else 0
        self._best_rate = max(self._best_rate, rate)
        self._round_from, self._round_replies, self._round_window = now, 0, self.window
        if self._flat_rounds >= FLAT_ROUNDS:
            self._end_start(now)

    def _round_rate(self, now: float) -> float:
        return self._round_replies / max(ROUND_S / 2, now - self._round_from)

    def _end_start(self, now: float) -> None:
        window = self._window_for(max(self._best_rate, self._admitted_per_s(now, RATE_AT_LEAST_OVER_S)))
        if window is not None:
            self.window = min(self.window, window)
        self._starting = False
        self._trials = Trials(now)

    def _window_for(self, rate: float) -> float | None:
        """What keeps an endpoint busy that answers so many requests per second."""
        unqueued_s = self._latencies.unqueued_s
        if unqueued_s is None or rate <= 0:
            return None
        return max(1.0, rate * max(HEADROOM * unqueued_s, unqueued_s + QUEUE_S))

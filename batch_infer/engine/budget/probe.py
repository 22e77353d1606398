"""Owns trials of other windows: whether a larger one brings more replies, or a smaller one as many. Pure.

A trial compares the rate of replies under the present window with the rate under another one, each over so many replies
that chance is not taken for an answer. What succeeds is tried again at once, in larger steps; what fails, later.

On the driver.
"""

from __future__ import annotations

from enum import Enum

REPLIES = 150
"""That a step by a quarter is judged by; fewer for larger steps, whose effect is clearer."""
LEAST_S = 1.0
LEAST_LATENCIES = 2.0
LONGEST_S = 30.0
"""By then whatever was counted decides."""
LARGER = (1.25, 1.5, 2.0)
SMALLER = (0.8, 0.65, 0.5)
"""A trial's window as a multiple of the present one: the first step, the next after a success, and all further ones."""
WORTH = 0.4
"""Share of the window's growth that the rate must show."""
NO_LOSS = 0.97
NO_LOSS_LONG = 0.88
"""A smaller window must keep this multiple of the rate: the usual value, and the one where replies queue for long, so
that a loss is chance."""
PAUSE_S = 5.0
LONGEST_PAUSE_S = 60.0
"""Seconds between trials: the first pause, which doubles after each trial that failed, and the longest."""


class _Kind(Enum):
    AS_IS = "as it is"
    LARGER = "larger"
    SMALLER = "smaller"


class Trials:
    """The trials of one window. The caller gives times, in seconds of one clock, and applies the windows returned."""

    def __init__(self, now: float) -> None:
        self._kind = _Kind.AS_IS
        self._from = now
        self._settled = True
        self._replies = 0
        self._steps = 0
        self._kept_window = 0.0
        self._kept_rate = 0.0
        self._queued_long = False
        self._next_at = now
        self._pause_s = PAUSE_S
        self._failed: _Kind | None = None

    @property
    def tries_larger(self) -> bool:
        """Whether the present window is a larger one on trial."""
        return self._kind is _Kind.LARGER

    def is_settling(self, now: float) -> bool:
        """Whether requests sent under the former window are still coming home."""
        return not self._settled and now < self._from

    def step(
        self,
        now: float,
        window: float,
        replies: int,
        latency_s: float,
        *,
        queues: bool,
        queues_long: bool,
        most: float,
    ) -> float:
        """Moves on, while the window is what binds.

        Args:
            now: The time.
            window: The present one.
            replies: Since the last step.
            latency_s: What a reply takes.
            queues: Whether replies queue, so that a smaller window may do.
            queues_long: Whether there is no doubt about it.
            most: The largest window allowed.

        Returns:
            The window from now on.
        """
        if not self._settled:
            if not self.is_settling(now):
                self._settled, self._from = True, now  # counted from here on: these replies began before
            return window
        self._replies += replies
        since = now - self._from
        if since < max(LEAST_S, LEAST_LATENCIES * latency_s) or (self._replies < self._needed and since < LONGEST_S):
            return window
        rate = self._replies / since
        if self._kind is _Kind.AS_IS:
            self._kept_window, self._kept_rate = window, rate
            self._queued_long = queues_long
            return self._begin(self._choose(now, window, queues, most), now, window, latency_s, most)
        if rate < self._enough:
            return self.fail(now)
        self._kept_window, self._kept_rate = window, rate
        self._pause_s = PAUSE_S
        self._steps = 0 if queues and self._kind is _Kind.LARGER else self._steps + 1
        can_go_on = window < most if self._kind is _Kind.LARGER else window > 1
        return self._begin(self._kind if can_go_on else _Kind.AS_IS, now, window, latency_s, most)

    def fail(self, now: float) -> float:
        """Ends the present trial as failed; the window to return to."""
        self._failed = self._kind
        self._pause_s = min(LONGEST_PAUSE_S, 2 * self._pause_s)
        self._next_at = now + self._pause_s
        self._steps = 0
        return self._begin(_Kind.AS_IS, now, self._kept_window, 0.0, self._kept_window)

    def break_off(self, now: float, window: float) -> float:
        """The window does not bind any more: nothing can be said; the window to return to."""
        kept = window if self._kind is _Kind.AS_IS else self._kept_window
        self._steps = 0
        return self._begin(_Kind.AS_IS, now, kept, 0.0, kept)

    @property
    def _factor(self) -> float:
        if self._kind is _Kind.AS_IS:
            return 1.0
        return (LARGER if self._kind is _Kind.LARGER else SMALLER)[min(self._steps, len(LARGER) - 1)]

    @property
    def _needed(self) -> float:
        return REPLIES * abs(LARGER[0] - 1) / max(LARGER[0] - 1, abs(self._factor - 1))

    @property
    def _enough(self) -> float:
        if self._kind is _Kind.SMALLER:
            return (NO_LOSS_LONG if self._queued_long else NO_LOSS) * self._kept_rate
        return (1 + WORTH * (self._factor - 1)) * self._kept_rate

    def _choose(self, now: float, window: float, queues: bool, most: float) -> _Kind:
        if now < self._next_at:
            return _Kind.AS_IS
        is_turn = self._failed is _Kind.LARGER or (self._failed is None and self._queued_long) or window >= most
        if queues and window > 1 and is_turn:
            return _Kind.SMALLER
        return _Kind.LARGER if window < most else _Kind.AS_IS

    def _begin(self, kind: _Kind, now: float, window: float, latency_s: float, most: float) -> float:
        self._kind = kind
        self._replies = 0
        self._settled = kind is _Kind.AS_IS
        self._from = now if self._settled else now + latency_s
        if kind is _Kind.LARGER:
            return min(most, max(window * self._factor, window + 1))
        if kind is _Kind.SMALLER:
            return max(1.0, min(window * self._factor, window - 1))
        return window

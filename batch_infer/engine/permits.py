"""Owns admission: when a request may be sent. Does not send, retry, or know what a request holds.

`Permits` is one half of the engine's seam. `LocalShare` is the implementation that needs nobody else: each task takes
limit ÷ task slots. Its sum over all tasks never exceeds the limit; a task that stands alone uses only its share.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from batch_infer.contract.endpoint import Endpoint
from batch_infer.contract.errors import RowRejected
from batch_infer.engine.clock import Clock

DEFAULT_IN_FLIGHT_PER_TASK = 64
"""Requests in flight in one task when the endpoint sets no `max_concurrency`."""
BURST_S = 1.0
"""A bucket holds at most this many seconds of its rate, so any 60 s window holds at most limit × 61/60."""

TICK_S = 0.001
"""The shortest sleep: what floating-point division leaves of a wait could be too little to move the clock."""
LOOK_AGAIN_S = 0.1
"""A wait is cut into pieces of this length, because tokens given back meanwhile may shorten it."""


class Permits(Protocol):
    """Admission for the requests of one task."""

    @property
    def max_in_flight(self) -> int:
        """Requests that may be in flight at the same time; may change while running."""
        ...

    async def acquire(self, tokens: int) -> float:
        """Waits until a request of about so many tokens may be sent; returns the seconds waited.

        Raises:
            RowRejected: no limit will ever allow so many tokens (`kind` `too_large`).
        """
        ...

    def settle(self, reserved: int, used: int | None) -> None:
        """Ends a permit: `used` tokens were billed, 0 if none, `None` if unknown (the reservation stands)."""
        ...

    def throttled(self, wait_s: float) -> None:
        """The endpoint asked to slow down: nobody is admitted for so many seconds."""
        ...


class Bucket:
    """A token bucket. It may go into debt, which is waited out: nothing is forgiven, and fractions are kept.

    Args:
        per_minute: The rate.
        now: The clock's time.
    """

    def __init__(self, per_minute: float, now: float) -> None:
        self.rate = per_minute / 60.0
        self.capacity = max(1.0, self.rate * BURST_S)
        self._level = self.capacity
        self._at = now

    def wait_s(self, amount: float, now: float) -> float:
        """Seconds until `amount` may be taken; more than the bucket holds may be taken when it is full."""
        self._refill(now)
        return max(0.0, (min(amount, self.capacity) - self._level) / self.rate)

    def take(self, amount: float, now: float) -> None:
        """Takes `amount`; a negative one gives back what was reserved and not used."""
        self._refill(now)
        self._level = min(self.capacity, self._level - amount)

    def _refill(self, now: float) -> None:
        self._level = min(self.capacity, self._level + max(0.0, now - self._at) * self.rate)
        self._at = max(self._at, now)


class LocalShare:
    """This task's share of the endpoint's limits: limit ÷ `slots`. First come, first served.

    Args:
        endpoint: Whose limits.
        slots: Tasks that can run at the same time in the whole cluster.
        clock: Time.
        random: Uniform in [0, 1); spreads what returns after a `Retry-After`.
    """

    def __init__(self, endpoint: Endpoint, slots: int, clock: Clock, random: Callable[[], float]) -> None:
        self._clock = clock
        self._random = random
        now = clock.now()
        slots = max(1, slots)
        rpm, tpm = endpoint.requests_per_minute, endpoint.tokens_per_minute
        self._tokens_per_minute = tpm
        self._requests = Bucket(rpm / slots, now) if rpm else None
        self._tokens = Bucket(tpm / slots, now) if tpm else None
        self._reopens_at = 0.0
        self._turn = asyncio.Lock()
        self._max_in_flight = (
            max(1, endpoint.max_concurrency // slots) if endpoint.max_concurrency else DEFAULT_IN_FLIGHT_PER_TASK
        )
        self._free = self._requests is None and self._tokens is None

    @property
    def max_in_flight(self) -> int:
        """See `Permits.max_in_flight`. At least 1, so a `max_concurrency` below the task slots is exceeded."""
        return self._max_in_flight

    async def acquire(self, tokens: int) -> float:
        """See `Permits.acquire`."""
        if self._free and not self._reopens_at:
            return 0.0
        if self._tokens_per_minute is not None and tokens > self._tokens_per_minute:
            raise RowRejected(
                f"the request needs about {tokens} tokens, more than the endpoint's tokens_per_minute "
                f"({self._tokens_per_minute:g}) ever allows. Shorten it or lower max_tokens.",
                kind="too_large",
            )
        started = self._clock.now()
        async with self._turn:
            while (wait := self._wait_s(tokens)) > 0:
                await self._clock.sleep(max(TICK_S, min(wait, LOOK_AGAIN_S)))
            now = self._clock.now()
            if self._requests:
                self._requests.take(1, now)
            if self._tokens:
                self._tokens.take(tokens, now)
        return self._clock.now() - started

    def _wait_s(self, tokens: int) -> float:
        now = self._clock.now()
        wait = self._reopens_at - now
        if self._requests:
            wait = max(wait, self._requests.wait_s(1, now))
        if self._tokens:
            wait = max(wait, self._tokens.wait_s(tokens, now))
        return wait

    def settle(self, reserved: int, used: int | None) -> None:
        """See `Permits.settle`."""
        if self._tokens and used is not None:
            self._tokens.take(used - reserved, self._clock.now())

    def throttled(self, wait_s: float) -> None:
        """See `Permits.throttled`. Reopens up to 10% later, so that many tasks do not come back as a herd."""
        self._reopens_at = max(self._reopens_at, self._clock.now() + wait_s * (1 + 0.1 * self._random()))

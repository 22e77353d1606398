"""Owns admission: when a request may be sent. Does not send, retry, or know what a request holds.

`Permits` is one half of the engine's seam. `LocalShare` is the implementation that needs nobody else: each task takes
limit ÷ task slots. Its sum over all tasks never exceeds the limit; a task that stands alone uses only its share.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import Enum
from typing import NamedTuple, Protocol

from batch_infer.contract.endpoint import Endpoint
from batch_infer.contract.errors import RowRejected
from batch_infer.contract.limits import Amount, Grant, Limits, Standing
from batch_infer.engine.clock import Clock

DEFAULT_IN_FLIGHT_PER_TASK = 64
"""Requests in flight in one task when the endpoint sets no `max_concurrency`."""
BURST_S = 1.0
"""A bucket holds at most this many seconds of its rate, so any 60 s window holds at most limit × 61/60."""

TICK_S = 0.001
"""The shortest sleep: what floating-point division leaves of a wait could be too little to move the clock."""
LOOK_AGAIN_S = 0.1
"""A wait is cut into pieces of this length, because tokens given back meanwhile may shorten it."""


class Permit(NamedTuple):
    """The right to send one request, once. Every permit is settled, whatever becomes of the request."""

    need: Amount
    """What was set aside for it."""
    epoch: int
    """`Grant.epoch` when it was given."""
    waited_s: float
    """Seconds that it was waited for."""


class Ending(Enum):
    """How a permit ended."""

    ACCEPTED = "accepted"
    """The endpoint replied, with whatever but a throttle."""
    THROTTLED = "throttled"
    """The endpoint asked to slow down."""
    FAILED = "failed"
    """No word from the endpoint: not connected, reset, timed out."""
    CANCELLED = "cancelled"
    """It was not sent, or the run ended before a reply came."""


class Permits(Protocol):
    """Admission for the requests of one task."""

    @property
    def max_in_flight(self) -> int:
        """Requests that may be waiting in `acquire` and in flight, together; may change while running."""
        ...

    async def acquire(self, need: Amount) -> Permit:
        """Waits until a request may be sent that needs about so much.

        Raises:
            RowRejected: no limit will ever allow so many tokens (`kind` `too_large`).
        """
        ...

    def settle(
        self,
        permit: Permit,
        ending: Ending,
        *,
        used: Amount | None = None,
        latency_s: float = 0.0,
        retry_after_s: float | None = None,
        seen: Limits | None = None,
    ) -> None:
        """Ends a permit.

        Args:
            permit: What `acquire` gave.
            ending: How the request ended.
            used: What was billed. `None`: not known. Then the reservation stands, or, where nothing was processed
                (THROTTLED, CANCELLED), its tokens are free again.
            latency_s: From sending to the end of the reply.
            retry_after_s: The wait that the endpoint asked for.
            seen: What the reply's headers say of the endpoint's limits.
        """
        ...


class LeasedPermits:
    """A task's side of a shared budget: it may use what `take` brings. No I/O.

    Args:
        limits: The endpoint's configured limits, for the whole cluster.
        clock: Time.
        random: Uniform in [0, 1); spreads what returns after a `Retry-After`.
        hurry: Called when the task runs dry, was throttled, or first begins to wait: whoever carries messages should
            come early. May be called often, from the event loop.
    """

    def __init__(
        self, limits: Limits, clock: Clock, random: Callable[[], float], hurry: Callable[[], None]
    ) -> None: ...

    @property
    def max_in_flight(self) -> int:
        """See `Permits.max_in_flight`."""
        raise NotImplementedError

    async def acquire(self, need: Amount) -> Permit:
        """See `Permits.acquire`."""
        raise NotImplementedError

    def settle(
        self,
        permit: Permit,
        ending: Ending,
        *,
        used: Amount | None = None,
        latency_s: float = 0.0,
        retry_after_s: float | None = None,
        seen: Limits | None = None,
    ) -> None:
        """See `Permits.settle`."""
        raise NotImplementedError

    def standing(self) -> Standing:
        """What the next message says. Thread-safe."""
        raise NotImplementedError

    def take(self, grant: Grant) -> None:
        """Takes the answer to a standing. On the event loop."""
        raise NotImplementedError

    def is_void(self) -> bool:
        """Whether nothing is admitted because no grant came for `Grant.valid_s`, or none yet. Thread-safe."""
        raise NotImplementedError


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

"""Owns the engine's seam: what a run needs from outside. Protocols, and the plainest implementation where there is one.

    run(requests, send, permits, store, clock) → outcomes

`Send` makes one attempt, `Permits` says when a request may be sent, `Store` remembers what was paid for, `Clock` is
time. Does not decide, send, retry or keep anything. On workers; `engine.budget` and `adapters` implement the protocols.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from enum import Enum
from typing import NamedTuple, Protocol

from batch_infer.contract.errors import EndpointError
from batch_infer.contract.limits import Amount, Limits
from batch_infer.contract.reply import Outcome, Reply
from batch_infer.contract.request import Request


class Sent(NamedTuple):
    """What came back of one request."""

    results: Sequence[Reply | EndpointError]
    """A result for each row, in their order."""
    limits: Limits | None = None
    """What the reply's headers say of the endpoint's limits; of a failure, `EndpointError.limits` does."""


Send = Callable[[Sequence[Request]], Awaitable[Sent]]
"""Sends one HTTP request for one or more rows, once, or raises `EndpointError` for all of them."""


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

    async def acquire(self, need: Amount, *, again: bool = False) -> Permit:
        """Waits until a request may be sent that needs about so much.

        Args:
            need: An estimate.
            again: It has been sent before, and goes before those that have not: else a throttled request would lose its
                turn to newer ones, and be throttled again.

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
            used: What was billed. `None`: not known; then the reservation stands, but a THROTTLED request's tokens are
                free again. `Amount()` with CANCELLED: it was not even sent.
            latency_s: From sending to the end of the reply.
            retry_after_s: The wait that the endpoint asked for.
            seen: What the reply's headers say of the endpoint's limits.
        """
        ...


class Store(Protocol):
    """Durable memory of requests and replies, by `request_key`. Called on the event loop: must not block for long."""

    def find(self, keys: Sequence[str]) -> Mapping[str, Outcome]:
        """Outcomes that need no request: replies already paid for, and failures that would only repeat."""
        ...

    def intend(self, requests: Sequence[Request]) -> None:
        """Records, before they are sent, that these requests are about to be."""
        ...

    def record(self, request: Request, outcome: Outcome) -> None:
        """Records what became of a request, before its row is yielded."""
        ...


class NoStore:
    """Remembers nothing."""

    def find(self, keys: Sequence[str]) -> Mapping[str, Outcome]:  # noqa: ARG002 - the protocol's
        """See `Store.find`."""
        return {}

    def intend(self, requests: Sequence[Request]) -> None:
        """See `Store.intend`."""

    def record(self, request: Request, outcome: Outcome) -> None:
        """See `Store.record`."""

    def close(self) -> None:
        """Has nothing to close."""


class Clock(Protocol):
    """Monotonic seconds and a way to wait for them."""

    def now(self) -> float:
        """Seconds since an arbitrary origin; never goes back."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Waits; returns at once when `seconds` is 0 or less."""
        ...


class SystemClock:
    """The machine's own monotonic clock."""

    def now(self) -> float:
        """See `Clock.now`."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """See `Clock.sleep`."""
        if seconds > 0:
            await asyncio.sleep(seconds)

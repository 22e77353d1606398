"""Owns the seam of admission: when a request may be sent, and how that ends. Does not decide it, send, or retry.

`Permits` is one half of the engine's seam; `engine.budget.permits` implements it.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple, Protocol

from batch_infer.contract.limits import Amount, Limits


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

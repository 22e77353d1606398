"""Owns a task's own budget, for when there is no driver to share one: limit ÷ task slots. Does no I/O.

Its sum over all tasks never exceeds the limit; a task that stands alone uses only its share.
"""

from __future__ import annotations

from collections.abc import Callable

from batch_infer.contract.limits import Amount, Limits
from batch_infer.engine.clock import Clock
from batch_infer.engine.permits import Ending, Permit


class LocalBudget:
    """`Permits` without messages: a pool of this task alone.

    Args:
        limits: The endpoint's configured limits, for the whole cluster.
        slots: Tasks that can run at the same time in the whole cluster.
        clock: Time.
        random: Uniform in [0, 1).
    """

    def __init__(self, limits: Limits, slots: int, clock: Clock, random: Callable[[], float]) -> None: ...

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

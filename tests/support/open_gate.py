"""Permits that admit at once, but for what a `Retry-After` closes, and that remember how each permit ended."""

from __future__ import annotations

from batch_infer.contract.errors import RowRejected
from batch_infer.engine.ports import Ending, Permit


class OpenGate:
    def __init__(self, clock, max_in_flight=8, most_tokens=None):
        self.max_in_flight = max_in_flight
        self.most_tokens = most_tokens
        self.needs = []
        self.endings = []
        self.settled = []
        self._clock = clock
        self._opens_at = 0.0

    async def acquire(self, need, *, again=False):
        if self.most_tokens is not None and need.input_tokens + need.output_tokens > self.most_tokens:
            raise RowRejected("too many tokens", kind="too_large")
        self.needs.append(need)
        started = self._clock.now()
        while (wait := self._opens_at - self._clock.now()) > 0:
            await self._clock.sleep(wait)
        return Permit(need, 0, self._clock.now() - started)

    def settle(self, permit, ending, **told):
        self.endings.append(ending)
        self.settled.append((permit, told))
        if ending is Ending.THROTTLED and told.get("retry_after_s"):
            self._opens_at = max(self._opens_at, self._clock.now() + told["retry_after_s"])


__all__ = ["OpenGate"]

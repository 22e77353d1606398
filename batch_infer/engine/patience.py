"""Owns the throttle deadline of requests that wait to be sent, and what is said when it is over. Sends nothing.

A closed gate, or a rate that was cut to almost nothing, admits nobody, so nobody would learn from a reply that it has
waited too long. The deadline runs from a request's first throttle; for what was never sent, from when the endpoint
began to throttle, as long as it has accepted nothing since. Waiting for one's turn under a limit does not count.
"""

from __future__ import annotations

import asyncio

from batch_infer.contract.errors import EndpointError, Throttled
from batch_infer.engine.ports import Clock
from batch_infer.engine.retry import RetryState

CHECK_S = 1.0
"""Between looks at the requests that wait."""


class Patience:
    """The waits of one run. On its event loop.

    Args:
        clock: Time.
        deadline_s: `RetryPolicy.throttle_deadline_s`.
    """

    def __init__(self, clock: Clock, deadline_s: float) -> None:
        self._clock = clock
        self._deadline_s = deadline_s
        self._waits: dict[asyncio.Task[None], RetryState] = {}
        self._throttle: Throttled | None = None  # the latest, while nothing has been accepted since
        self._throttled_since = 0.0
        self._watching: asyncio.Task[None] | None = None

    def begin(self, task: asyncio.Task[None], state: RetryState) -> None:
        """A task begins to wait. When its time is over, its state `is_overdue` and it is cancelled."""
        self._waits[task] = state

    def end(self, task: asyncio.Task[None]) -> None:
        """It waits no longer."""
        self._waits.pop(task, None)

    def interrupt(self) -> None:
        """Cancels all that wait."""
        for task in self._waits:
            task.cancel()

    def close(self) -> asyncio.Task[None] | None:
        """Looks no further; the task that ends with that."""
        if self._watching is not None:
            self._watching.cancel()
        return self._watching

    def note(self, failed: EndpointError | None, sent_at: float) -> None:
        """Takes note of what became of a request: whether the endpoint accepts what is sent after a throttle."""
        if not isinstance(failed, Throttled):
            if (failed is None or failed.status is not None) and sent_at >= self._throttled_since:
                self._throttle = None
            return
        if self._throttle is None:
            self._throttled_since = self._clock.now()
        self._throttle = failed
        if self._watching is None or self._watching.done():
            self._watching = asyncio.ensure_future(self._watch())

    def given_up(self, failed: EndpointError | None) -> Throttled:
        """The error of a request that has waited too long, from what the endpoint said last."""
        said = failed if isinstance(failed, Throttled) else self._throttle
        return Throttled(
            f"{said.message if said is not None else 'the endpoint throttled'} Gave up after "
            f"{self._deadline_s:g} s at most of waiting (throttle_deadline_s).",
            kind=said.kind if said is not None else "rate_limited",
            status=said.status if said is not None else 429,
            request_id=said.request_id if said is not None else None,
        )

    async def _watch(self) -> None:
        while self._throttle is not None or any(state.throttled_at is not None for state in self._waits.values()):
            await self._clock.sleep(CHECK_S)
            now = self._clock.now()
            for task, state in self._waits.items():
                since = state.throttled_at
                if since is None and self._throttle is not None:
                    since = max(state.started_at, self._throttled_since)
                if since is not None and now - since > self._deadline_s and not state.is_overdue:
                    state.is_overdue = True
                    task.cancel()

"""Owns what follows a failed attempt, and how long throttles are waited through. Sends nothing. On workers.

The only owner: no library below retries.

Classes of failure (`contract.errors`) and their treatment:

- throttle: goes back to the permits, which slow down every request and keep the pause that the endpoint asks for;
  costs no attempt; ends at a deadline;
- transient: an attempt each, full jitter;
- ambiguous: may have been billed, so it has a small budget of its own;
- a wrong reply: the model is told what is wrong with it, a bounded number of times;
- row-fatal and job-fatal: never sent again.

A closed gate, or a rate that was cut to almost nothing, admits nobody, so nobody would learn from a reply that it has
waited too long. The throttle deadline runs from a request's first throttle; for what was never sent, from when the
endpoint began to throttle, as long as it has accepted nothing since. Waiting for one's turn under a limit does not
count.

Source: "Exponential Backoff and Jitter" (AWS Architecture Blog, 2015) for full jitter.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace

from batch_infer.contract.endpoint import Endpoint
from batch_infer.contract.errors import Ambiguous, EndpointError, Throttled, Transient, WrongReply
from batch_infer.contract.reply import Reply
from batch_infer.contract.request import Request
from batch_infer.engine.ports import Clock
from batch_infer.engine.token_estimates import estimate_prompt_tokens

BACKOFF_BASE_S = 0.5
BACKOFF_CAP_S = 30.0
THROTTLE_BASE_S = 0.1
THROTTLE_CAP_S = 2.0
"""A throttled request's own pause bridges the time until every task's permits know of it; they do the rest."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Bounds of what one row may cost. All floats are seconds."""

    max_attempts: int = 5
    max_ambiguous_retries: int = 1
    throttle_deadline_s: float = 1800.0
    max_repairs: int = 2

    @classmethod
    def of(cls, endpoint: Endpoint) -> RetryPolicy:
        """The endpoint's own bounds."""
        return cls(
            endpoint.max_attempts, endpoint.max_ambiguous_retries, endpoint.throttle_deadline_s, endpoint.max_repairs
        )


@dataclass(slots=True)
class RetryState:
    """What one request has been through."""

    started_at: float
    attempts: int = 0
    transient: int = 0
    ambiguous: int = 0
    throttled: int = 0
    repairs: int = 0
    throttled_at: float | None = None
    """When it was throttled first: until then it waited for its turn, and no deadline runs."""
    is_overdue: bool = False
    """Its wait for a permit was ended, because the deadline is over."""


def repairing(
    policy: RetryPolicy, state: RetryState, request: Request, result: Reply | EndpointError
) -> Request | None:
    """The request that has the model mend a wrong reply: one turn longer. `None` for none. Updates `state`."""
    if not isinstance(result, WrongReply) or result.correction is None or state.repairs >= policy.max_repairs:
        return None
    state.repairs += 1
    turn = (result.reply.text or "", result.correction)
    tokens = sum(map(estimate_prompt_tokens, turn))
    return replace(request, turns=(*request.turns, turn), prompt_tokens=request.prompt_tokens + tokens)


def wait_before_retry(
    policy: RetryPolicy, state: RetryState, error: EndpointError, now: float, random: Callable[[], float]
) -> float | None:
    """Seconds to wait before sending again, or `None` to give the row up. Updates `state`.

    The k-th transient fault waits `random() * min(30, 0.5 * 2^(k-1))`, the k-th throttle `random() * min(2, 0.1 *
    2^(k-1))`; a `Retry-After` of a throttle is the permits' to keep, and gives the row up where it ends too late.

    Args:
        policy: The bounds.
        state: This request's history; counted up here.
        error: The failure of the attempt that just ended.
        now: The clock's time.
        random: Uniform in [0, 1).
    """
    if isinstance(error, Throttled):
        state.throttled += 1
        state.throttled_at = now if state.throttled_at is None else state.throttled_at
        wait = random() * min(THROTTLE_CAP_S, THROTTLE_BASE_S * 2.0 ** min(state.throttled - 1, 16))
        ready_at = now + max(wait, error.retry_after_s or 0.0)
        return wait if ready_at - state.throttled_at <= policy.throttle_deadline_s else None
    if isinstance(error, Ambiguous):
        state.ambiguous += 1
        if state.ambiguous > policy.max_ambiguous_retries:
            return None
        return random() * BACKOFF_BASE_S
    if isinstance(error, Transient):
        state.transient += 1
        if state.transient >= policy.max_attempts:
            return None
        if error.retry_after_s is not None:
            return min(error.retry_after_s, BACKOFF_CAP_S)
        return random() * min(BACKOFF_CAP_S, BACKOFF_BASE_S * 2.0 ** min(state.transient - 1, 16))
    return None


CHECK_S = 1.0
"""Seconds between looks at the requests that wait."""


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

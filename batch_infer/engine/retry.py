"""Owns the decision what follows a failed attempt. The only owner: no library below retries. Does not wait or send.

Classes of failure (`contract.errors`) and their treatment:

- throttle: goes back to the permits, which slow down every request and keep the pause that the endpoint asks for;
  costs no attempt; ends at a deadline;
- transient: an attempt each, full jitter;
- ambiguous: may have been billed, so it has a small budget of its own;
- a wrong reply: the model is told what is wrong with it, a bounded number of times;
- row-fatal and job-fatal: never sent again.

Source: "Exponential Backoff and Jitter" (AWS Architecture Blog, 2015) for full jitter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from batch_infer.contract.endpoint import Endpoint
from batch_infer.contract.errors import Ambiguous, EndpointError, Throttled, Transient, WrongReply
from batch_infer.contract.reply import Reply
from batch_infer.contract.request import Request
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

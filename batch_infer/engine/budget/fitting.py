"""Owns whether a request can ever fit into an endpoint's limits, and how much of one is set aside. Pure; on workers."""

from __future__ import annotations

from batch_infer.contract.errors import RowRejected
from batch_infer.contract.limits import Amount, Limits
from batch_infer.engine.budget.dimensions import REQUESTS, WORDS, Vector, per_minute


def within(need: Amount, seen: Limits) -> Amount:
    """What is set aside where headers tell of a limit on output tokens alone (Anthropic): no more than ever fits.

    Such endpoints count what a reply is, not what it may be, so `max_tokens` above the limit is no reason to refuse.
    """
    most = seen.output_tokens_per_minute
    if most is None:
        return need
    if seen.tokens_per_minute is not None:
        most = min(most, seen.tokens_per_minute - need.input_tokens)
    return need if most < 0 or need.output_tokens <= most else Amount(need.requests, need.input_tokens, most)


def too_large(need: Vector, limits: Limits) -> RowRejected | None:
    """The error of a request that needs more than a whole minute's tokens; `None` when it fits."""
    for d, limit in enumerate(per_minute(limits)):
        if d != REQUESTS and limit is not None and need[d] > limit:
            name = WORDS[d]
            return RowRejected(
                f"the request needs about {need[d]:.0f} tokens, more than the endpoint's {name} ({limit:g}) ever "
                "allow. Shorten it or lower max_tokens.",
                kind="too_large",
            )
    return None

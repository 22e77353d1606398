"""Owns the records of a shared budget: what a task has used and wants, and what it may use. Pure data.

Counts are cumulative since the task attempt began, on both sides, so that a message that is lost or repeated changes
nothing: what a task may still use is what it was granted less what it has used.

On driver and workers.
"""

from __future__ import annotations

import msgspec


class Limits(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an endpoint allows the whole cluster. `None`: no such limit is known."""

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    """Prompt and completion tokens together."""
    input_tokens_per_minute: float | None = None
    output_tokens_per_minute: float | None = None
    max_concurrency: int | None = None
    """Requests in flight."""


class Amount(msgspec.Struct, frozen=True, omit_defaults=True):
    """What requests take of a budget: before they are sent an estimate, afterwards what was billed."""

    requests: float = 0
    input_tokens: float = 0
    output_tokens: float = 0


class Dimensions(msgspec.Struct, frozen=True, omit_defaults=True):
    """One figure for each dimension that an endpoint may limit in rate."""

    requests: float = 0
    tokens: float = 0
    """Prompt and completion tokens together."""
    input_tokens: float = 0
    output_tokens: float = 0


class Standing(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where one task attempt stands.

    Counts are cumulative; `waiting`, `wanted`, `smallest`, `in_flight` and `retry_after_s` are of this moment.
    """

    number: int = 0
    """Of the standings of this attempt, from 1: one that overtook another, or comes twice, is told apart."""
    spent: Amount = Amount()
    """Of what was granted: reservations of what is under way, and what was billed for what is done."""
    waiting: Amount = Amount()
    """What would be sent at this moment if nothing held it back."""
    wanted: Amount = Amount()
    """What the task would like to have in hand for the coming `Grant.refresh_s`, what it has included."""
    smallest: Amount = Amount()
    """The smallest of the requests that wait: granting less than this helps nobody."""
    returned: Dimensions = Dimensions()
    """Of what was granted: what the task does not need and no longer counts as its own."""
    in_flight: int = 0
    accepted: int = 0
    """Replies that were not a throttle, whatever else they were."""
    latency_s: float = 0.0
    """Summed over `accepted`."""
    output_tokens: int = 0
    """Of the accepted replies."""
    throttled: int = 0
    epoch: int = 0
    """The latest `Grant.epoch` that a throttled request was sent under."""
    throttled_in_epoch: int = 0
    """Throttles of requests that were sent under `epoch`: what was sent before the last cut says nothing new."""
    retry_after_s: float | None = None
    """What is left of the longest wait that the endpoint has asked for."""
    seen: Limits | None = None
    """What the endpoint's headers say, when they say anything."""


class Grant(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one task attempt may do until it hears more."""

    requests: float | None = None
    """Requests granted since the attempt began. `None`: not limited in rate."""
    tokens: float | None = None
    """Tokens, prompt and completion together, granted since the attempt began. `None`: not limited."""
    input_tokens: float | None = None
    output_tokens: float | None = None
    max_in_flight: int = 0
    """Requests that may be in flight at the same time."""
    epoch: int = 0
    """Grows with every cut of the rate."""
    closed_s: float = 0.0
    """Nothing is sent for so many seconds (`Retry-After`)."""
    refresh_s: float = 0.25
    """When to report again; the grant is meant to be spread over this time."""
    valid_s: float = 5.0
    """After so many seconds without another grant, this one is void: its unused part was given to others."""
    bound_by: str | None = None
    """Which limit holds the call back, in words for the user; `None`: none, the endpoint is not waited for."""

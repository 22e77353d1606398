"""Owns the records that come back from an endpoint: usage, replies, failures, outcomes. Does not parse wire formats.

On driver and workers.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec


class Usage(msgspec.Struct, frozen=True, omit_defaults=True):
    """Tokens that the endpoint billed. `None` means that the endpoint did not say; it is never a stand-in for 0."""

    prompt_tokens: int | None = None
    """Tokens of the request."""
    completion_tokens: int | None = None
    """Tokens of the reply, the hidden reasoning included."""
    total_tokens: int | None = None
    """As reported; prompt + completion where the endpoint reports only the parts."""
    cached_tokens: int | None = None
    """The part of `prompt_tokens` that the endpoint served from its prompt cache."""
    reasoning_tokens: int | None = None
    """The part of `completion_tokens` that was hidden reasoning."""

    def plus(self, other: Usage) -> Usage:
        """The sum, field by field; `None` only where both are `None`."""
        return Usage(
            *map(_add, msgspec.structs.astuple(self), msgspec.structs.astuple(other)),
        )


def _add(a: int | None, b: int | None) -> int | None:
    if a is None:
        return b
    return a if b is None else a + b


def apportion(usage: Usage, weights: Sequence[int]) -> list[Usage]:
    """Splits the usage of one packed request over its inputs, in proportion to `weights`, so that it sums exactly.

    Largest-remainder rounding: every part is within one token of its exact share.
    """
    columns = [_split(total, weights) for total in msgspec.structs.astuple(usage)]
    return [Usage(*parts) for parts in zip(*columns, strict=True)]


def _split(total: int | None, weights: Sequence[int]) -> list[int | None]:
    if total is None:
        return [None] * len(weights)
    scale = sum(weights)
    if scale <= 0:
        weights, scale = [1] * len(weights), len(weights)
    parts = [total * weight // scale for weight in weights]
    by_remainder = sorted(range(len(weights)), key=lambda i: total * weights[i] % scale, reverse=True)
    for i in by_remainder[: total - sum(parts)]:
        parts[i] += 1
    return list(parts)


class ToolCall(msgspec.Struct, frozen=True):
    """One function call that the model asks for; `arguments` is JSON text exactly as the model wrote it."""

    id: str | None
    name: str | None
    arguments: str | None


class Reply(msgspec.Struct, frozen=True, omit_defaults=True, dict=True):
    """One usable reply. For chat and completions `text` is set, for embeddings `embedding`.

    What a `reply_reader.ReplyReader` has read of it stays with it, outside its fields, and is not encoded.
    """

    text: str | None = None
    """The first choice's text; `''` when the model stopped on purpose with tool calls alone."""
    embedding: list[float] | None = None
    choices: tuple[str, ...] = ()
    """The text of every choice, when there is more than one."""
    finish_reason: str | None = None
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    message: str | None = None
    """The first choice's whole message as JSON, unmodified."""
    model: str | None = None
    usage: Usage = Usage()


class Failure(msgspec.Struct, frozen=True):
    """Why a row has no result."""

    kind: str
    message: str
    status: int | None = None
    retryable: bool = False
    reply: Reply | None = None
    """What the endpoint said, where that is not what was asked for. Shown in the row's details; never an answer."""


class Outcome(msgspec.Struct):
    """What became of one request: a reply or a failure, never both and never neither."""

    reply: Reply | None = None
    failure: Failure | None = None
    usage: Usage = Usage()
    """Billed for all attempts together, failed ones included."""
    attempts: int = 0
    """Requests sent for this row; 0 when it was answered without one."""
    latency_ms: int | None = None
    """Milliseconds of the last attempt, queueing excluded."""
    from_ledger: bool = False
    at_us: int = 0
    """Microseconds since 1970 at which an outcome from the ledger was recorded."""
    origin: int = -1
    """`Request.origin` that paid for an outcome from the ledger."""
    run: str = ""
    """Run that paid for an outcome from the ledger."""
    result_type: str = ""
    """Digest of the type that was asked for, of a failure from the ledger."""


NO_OUTCOME = Outcome()
"""Stand-in for a row that was never a request. Not to be changed."""

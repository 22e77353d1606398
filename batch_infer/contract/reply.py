"""Owns the records that come back from an endpoint: usage, replies, failures, outcomes. Does not parse wire formats."""

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
            _add(self.prompt_tokens, other.prompt_tokens),
            _add(self.completion_tokens, other.completion_tokens),
            _add(self.total_tokens, other.total_tokens),
            _add(self.cached_tokens, other.cached_tokens),
            _add(self.reasoning_tokens, other.reasoning_tokens),
        )


def _add(a: int | None, b: int | None) -> int | None:
    if a is None:
        return b
    return a if b is None else a + b


def apportion(usage: Usage, weights: Sequence[int]) -> list[Usage]:
    """Splits the usage of one packed request over its inputs, in proportion to `weights`, so that it sums exactly.

    Largest-remainder rounding: every part is within one token of its exact share.
    """
    columns = [
        _split(total, weights)
        for total in (
            usage.prompt_tokens,
            usage.completion_tokens,
            usage.total_tokens,
            usage.cached_tokens,
            usage.reasoning_tokens,
        )
    ]
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


class Reply(msgspec.Struct, frozen=True, omit_defaults=True):
    """One usable reply. For chat and completions `text` is set, for embeddings `embedding`."""

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
    """Of the last attempt; queueing excluded."""
    from_ledger: bool = False
    at_us: int = 0
    """Of an outcome from the ledger: when it was recorded, in microseconds since 1970."""
    origin: int = -1
    """Of an outcome from the ledger: the `Request.origin` that paid for it."""
    run: str = ""
    """Of an outcome from the ledger: the run that paid for it."""
    result_type: str = ""
    """Of a failure from the ledger: a digest of the type that was asked for then."""

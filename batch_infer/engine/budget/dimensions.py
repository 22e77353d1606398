"""Owns the dimensions in which an endpoint limits rates, and amounts as vectors over them. Pure."""

from __future__ import annotations

from typing import TypeVar

from batch_infer.contract.limits import Amount, Limits

Number = TypeVar("Number", int, float)

REQUESTS, TOKENS, INPUT, OUTPUT = range(4)
DIMENSIONS = range(4)
WORDS = ("requests per minute", "tokens per minute", "input tokens per minute", "output tokens per minute")

Vector = tuple[float, float, float, float]
ZERO: Vector = (0.0, 0.0, 0.0, 0.0)


def vector(amount: Amount) -> Vector:
    """An amount, dimension by dimension."""
    incoming, outgoing = amount.input_tokens, amount.output_tokens
    return (amount.requests, incoming + outgoing, incoming, outgoing)


def per_minute(limits: Limits) -> tuple[float | None, float | None, float | None, float | None]:
    """The limits' rates, dimension by dimension."""
    return (
        limits.requests_per_minute,
        limits.tokens_per_minute,
        limits.input_tokens_per_minute,
        limits.output_tokens_per_minute,
    )


def tighter(a: Limits, b: Limits) -> Limits:
    """What both allow."""
    return Limits(
        _least(a.requests_per_minute, b.requests_per_minute),
        _least(a.tokens_per_minute, b.tokens_per_minute),
        _least(a.input_tokens_per_minute, b.input_tokens_per_minute),
        _least(a.output_tokens_per_minute, b.output_tokens_per_minute),
        _least(a.max_concurrency, b.max_concurrency),
    )


def _least(a: Number | None, b: Number | None) -> Number | None:
    if a is None or b is None:
        return b if a is None else a
    return min(a, b)

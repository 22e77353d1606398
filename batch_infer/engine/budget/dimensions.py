"""Owns the dimensions in which an endpoint limits rates, in one table, and amounts as vectors over them. Pure.

A further dimension is a record here, and its fields in `contract.limits` (and in `Endpoint`, where users set it). On
driver and workers.

On driver and workers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

from batch_infer.contract.limits import Amount, Dimensions, Grant, Limits

Number = TypeVar("Number", int, float)


class Dimension(NamedTuple):
    """One thing that an endpoint may count per minute."""

    name: str
    """Field of `Grant` and `Dimensions`; `Limits` has it as `<name>_per_minute`."""
    words: str
    """What users call its limit."""
    of: Callable[[Amount], float]
    """How much of it an amount takes."""

    @property
    def limit(self) -> str:
        """The field of `Limits`."""
        return f"{self.name}_per_minute"


TABLE = (
    Dimension("requests", "requests per minute", lambda amount: amount.requests),
    Dimension("tokens", "tokens per minute", lambda amount: amount.input_tokens + amount.output_tokens),
    Dimension("input_tokens", "input tokens per minute", lambda amount: amount.input_tokens),
    Dimension("output_tokens", "output tokens per minute", lambda amount: amount.output_tokens),
)
"""Every dimension; a vector has one number for each, in this order."""

DIMENSIONS = range(len(TABLE))
"""Indexes into a vector."""
NAMES = tuple(dimension.name for dimension in TABLE)
WORDS = tuple(dimension.words for dimension in TABLE)
REQUESTS, TOKENS = NAMES.index("requests"), NAMES.index("tokens")
INPUT, OUTPUT = NAMES.index("input_tokens"), NAMES.index("output_tokens")
"""Dimensions that are treated apart from others somewhere."""

_GETTERS = tuple(dimension.of for dimension in TABLE)
_LIMITS = tuple(dimension.limit for dimension in TABLE)

Vector = tuple[float, ...]
"""A number for each dimension."""
ZERO: Vector = (0.0,) * len(TABLE)


def zeros() -> list[float]:
    """A vector of zeros that can be added to."""
    return [0.0] * len(TABLE)


def vector(amount: Amount) -> Vector:
    """An amount, dimension by dimension."""
    return tuple([of(amount) for of in _GETTERS])


def amount(values: Vector | list[float]) -> Amount:
    """The amount of a vector."""
    return Amount(values[REQUESTS], values[INPUT], values[OUTPUT])


def per_minute(limits: Limits) -> tuple[float | None, ...]:
    """The limits' rates, dimension by dimension."""
    return tuple([getattr(limits, name) for name in _LIMITS])


def of_record(record: Grant | Dimensions) -> tuple[float | None, ...]:
    """What a record has for each dimension."""
    return tuple([getattr(record, name) for name in NAMES])


def tighter(a: Limits, b: Limits) -> Limits:
    """What both allow."""
    return Limits(*(_least(getattr(a, name), getattr(b, name)) for name in Limits.__struct_fields__))


def _least(a: Number | None, b: Number | None) -> Number | None:
    if a is None or b is None:
        return b if a is None else a
    return min(a, b)

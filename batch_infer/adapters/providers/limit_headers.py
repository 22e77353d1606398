"""Owns the reading of rate-limit headers: what an endpoint says that it allows in a minute. Pure; on workers.

    x-ratelimit-limit-{requests,tokens}                                     OpenAI, Azure and most compatible servers
    anthropic-ratelimit-{requests,tokens,input-tokens,output-tokens}-limit  Anthropic

A limit header does not name its period. A reset further away than a minute's limit could need tells that it is another
one (per day), and then it says nothing about a minute.

Source: the providers' documentation. OpenAI's resets are durations (`6m0s`), Anthropic's are RFC 3339 times.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from batch_infer.contract.limits import Limits

LONGEST_RESET_S = 120.0
"""Longest wait, in seconds, after which a limit per minute is whole again: twice a minute, for clocks and rounding."""


@dataclass(frozen=True, slots=True)
class LimitHeader:
    """One header that names a limit."""

    dimension: str
    """What it limits: `requests`, `tokens`, `input_tokens` or `output_tokens`."""
    limit: str
    """The header's name, in lower case."""
    reset: str | None = None
    """Name of the header that says when the limit is whole again; `None`: the period is known to be `period_s`."""
    period_s: float = 60.0
    """Seconds that the limit is for."""


_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ms|us|µs|d|h|m|s)")
_UNIT_S = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6}


def limits_in(headers: Mapping[str, str], names: Sequence[LimitHeader] | None = None) -> Limits | None:
    """What the headers of one reply allow per minute; `None` where no such header is there.

    A value that is not a number above 0 (Azure sends `-1` and `0`) counts as absent, and so does one that is not per
    minute.

    Args:
        headers: Lower-case names.
        names: The provider's headers; of two for one dimension the first that is there counts. `None`: OpenAI's and
            Anthropic's.
    """
    found: dict[str, Any] = {}
    is_there = False
    for name in (*OPENAI_LIMITS, *ANTHROPIC_LIMITS) if names is None else names:
        field = f"{name.dimension}_per_minute"
        if name.limit not in headers or field in found:
            continue
        is_there = True
        limit = _positive(headers[name.limit])
        reset_s = _reset_s(headers.get(name.reset), headers.get("date")) if name.reset is not None else None
        if limit is not None and (reset_s is None or reset_s <= LONGEST_RESET_S):
            found[field] = limit * 60.0 / name.period_s
    return Limits(**found) if is_there else None


def _positive(text: str | None) -> float | None:
    try:
        number = float(text) if text is not None else math.nan
    except ValueError:
        return None
    return number if math.isfinite(number) and number > 0 else None


def _reset_s(text: str | None, date: str | None) -> float | None:
    """Seconds until a limit is whole again, from a duration, seconds, or a time; `None` where absent or garbage."""
    if not text:
        return None
    with contextlib.suppress(ValueError):
        return float(text)
    if _DURATION.match(text) is not None and not _DURATION.sub("", text).strip():
        return sum(float(number) * _UNIT_S[unit] for number, unit in _DURATION.findall(text))
    try:
        reset = datetime.fromisoformat(text.strip())
        if reset.tzinfo is None:
            reset = reset.replace(tzinfo=UTC)
        now = parsedate_to_datetime(date) if date else datetime.now(UTC)
        return (reset - now).total_seconds()
    except (TypeError, ValueError, OverflowError):
        return None


OPENAI_LIMITS = tuple(
    LimitHeader(dimension, f"x-ratelimit-limit-{dimension}", f"x-ratelimit-reset-{dimension}")
    for dimension in ("requests", "tokens")
)
"""Headers of OpenAI, Azure and most compatible servers."""
ANTHROPIC_LIMITS = tuple(
    LimitHeader(
        dimension.replace("-", "_"),
        f"anthropic-ratelimit-{dimension}-limit",
        f"anthropic-ratelimit-{dimension}-reset",
    )
    for dimension in ("requests", "tokens", "input-tokens", "output-tokens")
)
"""Anthropic's headers."""

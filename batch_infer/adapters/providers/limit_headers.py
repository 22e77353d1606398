"""Owns the reading of rate-limit headers: what an endpoint says that it allows in a minute. Pure; decides nothing.

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
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from batch_infer.contract.limits import Limits

LONGEST_RESET_S = 120.0
"""A limit per minute is whole again after a minute; twice that allows for clocks and rounding."""

_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ms|us|µs|d|h|m|s)")
_UNIT_S = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6}


def limits_in(headers: Mapping[str, str]) -> Limits | None:
    """What the headers of one reply allow per minute; `None` where no such header is there.

    A value that is not a number above 0 (Azure sends `-1` and `0`) counts as absent, and so does one that is not per
    minute.

    Args:
        headers: Lower-case names.
    """
    names = next((names for names in (_OPENAI, _ANTHROPIC) if any(limit in headers for _, limit, _ in names)), None)
    if names is None:
        return None
    found: dict[str, Any] = {}
    for field, limit_name, reset_name in names:
        limit = _positive(headers.get(limit_name))
        reset_s = _reset_s(headers.get(reset_name), headers.get("date"))
        if limit is not None and (reset_s is None or reset_s <= LONGEST_RESET_S):
            found[field] = limit
    return Limits(**found)


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


_OPENAI = tuple(
    (f"{field}_per_minute", f"x-ratelimit-limit-{field}", f"x-ratelimit-reset-{field}")
    for field in ("requests", "tokens")
)
_ANTHROPIC = tuple(
    (
        f"{field.replace('-', '_')}_per_minute",
        f"anthropic-ratelimit-{field}-limit",
        f"anthropic-ratelimit-{field}-reset",
    )
    for field in ("requests", "tokens", "input-tokens", "output-tokens")
)

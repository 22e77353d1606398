"""Owns what Google's `RESOURCE_EXHAUSTED` errors say beside their words: which quota, and how long to wait. Pure.

Their words speak of billing whatever the quota, so only the details count.

On workers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

_DURATION = re.compile(r"(\d{1,9}(?:\.\d+)?)s")


class Exhausted(NamedTuple):
    """A quota that is used up."""

    for_today: bool
    """A daily quota: waiting some minutes will not help."""
    retry_after_s: float | None
    """`RetryInfo.retryDelay`."""


def read_exhausted(error: Any) -> Exhausted | None:
    """What an error object says, or `None` where it is not Google's."""
    if not isinstance(error, Mapping) or error.get("status") != "RESOURCE_EXHAUSTED":
        return None
    details = error.get("details")
    for_today, wait_s = False, None
    for detail in details if isinstance(details, list) else ():
        if not isinstance(detail, Mapping):
            continue
        violations = detail.get("violations")
        for violation in violations if isinstance(violations, list) else ():
            for_today |= isinstance(violation, Mapping) and "perday" in str(violation.get("quotaId")).lower()
        delay = _DURATION.fullmatch(str(detail.get("retryDelay")))
        if delay is not None:
            wait_s = float(delay.group(1))
    return Exhausted(for_today, wait_s)

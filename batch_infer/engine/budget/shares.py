"""Owns max-min fairness: dividing what is scarce so that nobody has more while another wants and has less. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable


def max_min(total: float, demands: Iterable[float]) -> tuple[float, float]:
    """The level and the extra at which `min(demand, level) + extra`, summed over all, is `total`.

    Args:
        total: What there is; 0 or more.
        demands: What each wants; 0 or more.

    Returns:
        The level; infinite when there is enough for all. The extra: what is over then, divided equally.
    """
    left = total
    ordered = sorted(demands)
    for index, demand in enumerate(ordered):
        share = left / (len(ordered) - index)
        if demand >= share:
            return share, 0.0
        left -= demand
    return math.inf, left / max(1, len(ordered))

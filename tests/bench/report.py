"""Owns what every measurement prints: where it ran, a table, and a line of JSON for each result."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import version
from statistics import median
from typing import Any


def begin(name: str, what: str) -> None:
    """The command and the machine."""
    load = os.getloadavg()[0]
    print(f"\n== {name}: {what}")
    print(f"   $ python -m tests.bench {' '.join(sys.argv[1:]) or name}")
    print(
        f"   {os.cpu_count()} cores (load {load:.1f} before), Python {platform.python_version()}, "
        f"Spark {version('pyspark')}, {platform.system()} {platform.machine()}",
        flush=True,
    )


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Columns of text; the first to the left, the others to the right."""
    cells = [list(head), *([shown(value) for value in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    print()
    for row in cells:
        print(
            "   "
            + "  ".join(
                c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
        )
    print(flush=True)


def result(measurement: str, **figures: Any) -> None:
    """One line of JSON, for programs."""
    rounded = {name: round(value, 4) if isinstance(value, float) else value for name, value in figures.items()}
    print(json.dumps({"measurement": measurement, **rounded}), flush=True)


def shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def middle(values: Sequence[float]) -> float | None:
    return median(values) if values else None


def on_and_off(
    measurement: str, what: str, runs: Sequence[dict[str, dict[str, float]]], rows: int, **figures: Any
) -> None:
    """What pairs of runs with something `on` and `off` show: medians, and the median of the pairs' ratios."""
    sides = ("on", "off")
    ratio = middle([pair["on"]["rows_per_s"] / pair["off"]["rows_per_s"] for pair in runs])
    cpu = {side: middle([1000 * pair[side]["cpu_s"] / rows for pair in runs]) for side in sides}
    rate = {side: middle([pair[side]["rows_per_s"] for pair in runs]) for side in sides}
    table((what, "rows/s", "Python CPU s / 1,000 rows"), [(side, rate[side], cpu[side]) for side in sides])
    print(f"   On is {ratio:.3f} of off (the median of the pairs' ratios).")
    result(
        measurement, rows=rows, **figures, pairs=len(runs), ratio=ratio, on=rate["on"], off=rate["off"],
        on_cpu_s_per_1000_rows=cpu["on"], off_cpu_s_per_1000_rows=cpu["off"],
    )  # fmt: skip

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

"""Owns the one-line progress display of a job, and how its summary reads. Does not collect the figures.

On the driver.
"""

from __future__ import annotations

import sys
import time
from typing import TextIO

from batch_infer.contract.progress import Counters
from batch_infer.spark.job.summary import RunSummary

LINE_INTERVAL_S = 5.0
"""Seconds between lines where the output is no terminal, and each line stays."""


class ProgressLine:
    """Draws the totals as one line: rewritten in place on a terminal, a new line every five seconds elsewhere."""

    def __init__(self, label: str, stream: TextIO | None = None) -> None:
        self._label = label
        self._stream = stream or sys.stderr
        self._in_place = self._stream.isatty()
        self._next_at = 0.0
        self._width = 0
        self._last: tuple[Counters, float, str | None] | None = None

    def update(self, totals: Counters, seconds: float, bound_by: str | None = None) -> None:
        """Shows new totals, if it is time to."""
        self._last = (totals, seconds, bound_by)
        if self._in_place:
            self._draw(line_of(self._label, totals, seconds, bound_by))
        elif time.monotonic() >= self._next_at:
            self._next_at = time.monotonic() + LINE_INTERVAL_S
            print(line_of(self._label, totals, seconds, bound_by), file=self._stream, flush=True)

    def close(self) -> None:
        """Leaves the last totals standing."""
        if self._last is None:
            return
        text = line_of(self._label, *self._last)
        if self._in_place:
            self._draw(text)
            print(file=self._stream, flush=True)
        else:
            print(text, file=self._stream, flush=True)

    def _draw(self, text: str) -> None:
        self._stream.write("\r" + text.ljust(self._width))
        self._stream.flush()
        self._width = len(text)


def line_of(label: str, totals: Counters, seconds: float, bound_by: str | None = None) -> str:
    """The line: what is done, how fast, what it costs, and what holds it up."""
    rows = totals.rows_settled
    parts = [f"{rows:,} rows"]
    if totals.rows_failed:
        parts.append(f"{totals.rows_failed:,} failed")
    if totals.rows_from_ledger:
        parts.append(f"{totals.rows_from_ledger:,} from ledger")
    parts.append(f"{rows / seconds:,.1f} rows/s" if seconds > 0 else "starting")
    parts.append(f"{totals.in_flight:,} in flight")
    parts.append(f"{totals.prompt_tokens + totals.completion_tokens:,} tokens")
    if totals.cost_usd:
        parts.append(f"${totals.cost_usd:,.4f}")
    if totals.throttled:
        parts.append(f"{totals.throttled:,} throttled")
    if totals.ambiguous:
        parts.append(f"{totals.ambiguous:,} in doubt")
    if bound_by is not None:
        parts.append(f"bound by {bound_by}")
    minutes, rest = divmod(int(seconds), 60)
    return f"[{label}] {' · '.join(parts)} · {minutes}:{rest:02d}"


def summary_lines(summary: RunSummary) -> list[str]:
    """A job's summary, a line each."""
    rows = f"{summary.rows:,} rows: {summary.succeeded:,} answered, {summary.failed:,} failed, {summary.null:,} NULL"
    cost = "price unknown" if summary.cost_usd is None else f"${summary.cost_usd:,.4f}"
    tokens = f"{_count(summary.prompt_tokens)} prompt + {_count(summary.completion_tokens)} completion tokens"
    lines = [
        f"{rows} in {summary.seconds:.1f} s ({summary.rows / max(summary.seconds, 1e-9):,.1f} rows/s)",
        f"usage: {tokens}, {cost}",
    ]
    if summary.from_ledger:
        known = f"{summary.from_ledger:,} rows from the ledger, or equal to another row"
        lines.insert(1, f"{summary.asked:,} requests asked now; {known}")
    if summary.in_doubt:
        lines.append(f"in doubt: {summary.in_doubt:,} requests may have been billed without a reply (a worker died)")
    if summary.errors:
        lines.append("errors: " + ", ".join(f"{count:,} × {kind}" for kind, count in sorted(summary.errors.items())))
    if summary.bound_by is not None or summary.throttled:
        bound = f"bound by {summary.bound_by}; " if summary.bound_by is not None else ""
        waited = f"requests waited {summary.waiting_s:,.0f} s in sum"
        lines.append(f"limits: {bound}{summary.throttled:,} replies asked to slow down; {waited}")
    if summary.unleased_tasks:
        lines.append(
            f"limits: tasks that could not reach the driver for a while: {summary.unleased_tasks:,}; they kept to "
            "their own share of the limits"
        )
    if summary.stopped_early is not None:
        never = summary.errors.get("not_sent", 0)
        lines.append(f"stopped early, {summary.stopped_early}: {never:,} rows were never sent")
        lines.append(_how_to_send_the_rest(summary.mode))
    lines.append(f"output: {summary.output}")
    lines.append(f"ledger: {summary.ledger} (what is in it is never paid for again)")
    return lines


def _count(tokens: int | None) -> str:
    return "no" if tokens is None else f"{tokens:,}"


def _how_to_send_the_rest(mode: str) -> str:
    if mode == "merge":
        return "Run it again to send them and what failed; what is answered is kept."
    return "Run it again with mode 'resume' to send them and what failed; what is answered is kept."

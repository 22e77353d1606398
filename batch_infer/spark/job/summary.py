"""Owns what is said of a finished job: the summary, and the measures of its rows that it is made of. On the driver."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pyspark.sql import Column
from pyspark.sql import functions as F  # noqa: N812 - Spark's own convention

from batch_infer.adapters.ledger import Ledger
from batch_infer.contract.errors import ROW_ERROR_KINDS
from batch_infer.contract.rows import USAGE_FIELDS
from batch_infer.spark.job.monitor import Monitor
from batch_infer.spark.job.phases import ANSWER

AUDIT_BELOW_BYTES = 256 * 1024 * 1024
"""Bytes of the largest ledger that is audited after a job: 6 CPU seconds a million records."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """What a job did. Tokens and dollars are what the endpoint billed for the rows written, repeats included."""

    output: str
    ledger: str
    rows: int
    """Rows written; as many as the input has."""
    succeeded: int
    failed: int
    null: int
    """Rows whose request was NULL: no call."""
    from_ledger: int
    """Rows that cost nothing now: known from before, or equal to another row of this job."""
    in_doubt: int | None
    """Requests that were sent, by this run or the one that it continues, and have no recorded outcome, because a worker
    died or was stopped; they may have been billed. `None`: the ledger is too large to audit here."""
    asked: int
    """Distinct requests that were sent now."""
    attempts: int
    """Requests' attempts summed over rows; a packed request counts once for each of its rows."""
    prompt_tokens: int | None
    completion_tokens: int | None
    total_tokens: int | None
    cost_usd: float | None
    """`None` when the price is unknown."""
    seconds: float
    errors: Mapping[str, int] = field(default_factory=dict)
    """Failed rows by kind of error. `not_sent` are those of a run that was stopped early."""
    throttled: int = 0
    """Replies that asked to slow down (429, 503, 529)."""
    waiting_s: float = 0.0
    """Seconds that requests waited for a limit or a pause before they were sent, summed over requests."""
    bound_by: str | None = None
    """Limit that held the job back for a good part of its time, in words; `None`: none did."""
    unleased_tasks: int = 0
    """Tasks that could not hear from the driver for a while, and kept to a share of their own of the limits."""
    stopped_early: str | None = None
    """Reason why not all was sent ("because …": `max_error_ratio`, `stop_after_failures`); `None`: all was."""
    mode: str = ""
    """How the table was written: error, overwrite, append or merge."""


def measures() -> list[Column]:
    """What is counted and summed over the rows written."""
    ai = ANSWER
    failed = F.col(f"{ai}.error").isNotNull()
    paid = ~F.col(f"{ai}.from_ledger")
    usage = [F.sum(F.when(paid, F.col(f"{ai}.usage.{name}"))).alias(name) for name in USAGE_FIELDS[:3]]
    return [
        F.count(F.lit(1)).alias("rows"),
        F.count(F.when(F.col(ai).isNull(), 1)).alias("null"),
        F.count(F.when(failed, 1)).alias("failed"),
        F.count(F.when(F.col(f"{ai}.from_ledger"), 1)).alias("from_ledger"),
        F.count(F.when(paid & (F.col(f"{ai}.attempts") > 0), 1)).alias("asked"),
        F.sum(F.when(paid, F.col(f"{ai}.attempts"))).alias("attempts"),
        *usage,
        F.sum(F.when(paid, F.col(f"{ai}.cost_usd"))).alias("cost_usd"),
        *(F.count(F.when(F.col(f"{ai}.error.kind") == kind, 1)).alias(f"error {kind}") for kind in ROW_ERROR_KINDS),
    ]


def summarised(
    output: str, ledger: str, seen: Mapping[str, Any], seconds: float, *, is_priced: bool, in_doubt: int | None
) -> RunSummary:
    """The summary of measures that were seen."""
    errors = {kind: seen[f"error {kind}"] for kind in ROW_ERROR_KINDS if seen[f"error {kind}"]}
    return RunSummary(
        output=output,
        ledger=ledger,
        rows=seen["rows"],
        succeeded=seen["rows"] - seen["null"] - seen["failed"],
        failed=seen["failed"],
        null=seen["null"],
        from_ledger=seen["from_ledger"],
        asked=seen["asked"],
        in_doubt=in_doubt,
        attempts=seen["attempts"] or 0,
        prompt_tokens=seen["prompt_tokens"],
        completion_tokens=seen["completion_tokens"],
        total_tokens=seen["total_tokens"],
        cost_usd=(seen["cost_usd"] or 0.0) if is_priced else None,
        seconds=seconds,
        errors=errors,
    )


def with_limits(summary: RunSummary, monitor: Monitor, mode: str) -> RunSummary:
    """The summary, with what the endpoint's limits and the job's own did, and the mode."""
    totals = monitor.call.progress().totals()
    return replace(
        summary,
        throttled=totals.throttled,
        waiting_s=totals.waiting_s,
        bound_by=monitor.bound_by,
        unleased_tasks=totals.unleased_tasks,
        mode=mode,
        stopped_early=monitor.stopped_early if "not_sent" in summary.errors else None,
    )


def requests_in_doubt(ledger: str, run: str) -> int | None:
    """Requests of a run without a recorded outcome; `None` where the ledger is too large to look through."""
    with contextlib.closing(Ledger.open(ledger)) as opened:
        if sum(opened.files.sizes("log").values()) > AUDIT_BELOW_BYTES:
            return None
        audit = opened.audit(run=run)
        return audit.in_doubt + audit.asked_again

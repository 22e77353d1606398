"""Owns the counters of running tasks and how they add up to a call's progress. Does not send, time or display them.

One *call* is one `ai_query` in a plan. Spark runs it as tasks, a task as one or more attempts; every attempt reports
its own cumulative counters, again and again.

On driver and workers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

ROW_FIELDS = ("rows_done", "rows_failed", "rows_null", "rows_from_ledger", "failures")
"""Counted once a partition, from the attempt that settled the most rows."""


class TaskId(msgspec.Struct, frozen=True, order=True):
    """One attempt of one Spark task."""

    stage: int
    """`TaskContext.stageId()`. Grows through a session, so that a repeated action has other stages."""
    partition: int
    """`TaskContext.partitionId()`."""
    attempt: int
    """`TaskContext.taskAttemptId()`, unique in a session. Not `attemptNumber()`, which begins at 0 again when Spark
    repeats a whole stage after lost shuffle output, and would hide what the first time cost."""


class Counters(msgspec.Struct, omit_defaults=True):
    """What one task attempt has done so far. Cumulative since the attempt began, except `in_flight`.

    The only list of counters: `engine.tally.Tally` is this record while it counts, and `CallProgress` adds up its
    fields. Records that travel are not changed.
    """

    rows_done: int = 0
    """Rows that have a result; the ones from the ledger included, NULL requests not."""
    rows_failed: int = 0
    """Rows that have an error."""
    rows_null: int = 0
    """Rows whose request was NULL: no call, no charge."""
    rows_from_ledger: int = 0
    """The part of `rows_done` that was answered from the ledger and cost nothing now."""
    requests: int = 0
    """Requests sent, repeated ones included."""
    attempts_repeated: int = 0
    """The part of `requests` that repeated an earlier one of the same row."""
    throttled: int = 0
    """Replies that asked to slow down."""
    ambiguous: int = 0
    """Requests that may have been billed although no usable reply arrived."""
    in_flight: int = 0
    """Requests under way at this moment."""
    prompt_tokens: int = 0
    """As far as the endpoint reported them."""
    completion_tokens: int = 0
    """As far as the endpoint reported them."""
    cached_tokens: int = 0
    """The part of `prompt_tokens` that the endpoint's cache served."""
    cost_usd: float | None = None
    """US dollars, failed and repeated requests included. `None`: the price is unknown, or nothing was billed yet."""
    waiting_s: float = 0.0
    """Seconds that requests waited for a limit or a pause before they were sent, summed over requests."""
    failures: dict[str, int] = {}
    """`rows_failed` by kind of error."""
    unleased_tasks: int = 0
    """1 where the task could not hear from the driver for a while and kept to a share of its own of the limits."""

    @property
    def rows_settled(self) -> int:
        """Rows that will not change any more: with a result, with an error, or NULL."""
        return self.rows_done + self.rows_failed + self.rows_null


FIELDS = tuple(Counters.__struct_fields__)


class CallProgress:
    """The progress of one call: the latest counters of every task attempt, and their sum.

    Contract: idempotent. A later report of an attempt replaces the earlier one; after an attempt's last report
    (`finished`), stragglers of it are ignored. Requests, tokens, cost and waiting add up over all attempts, because
    all were billed; rows count once a partition. Not thread-safe: whoever shares one guards it, or hands out `copy()`.
    """

    def __init__(self) -> None:
        self._latest: dict[TaskId, Counters] = {}
        self._finished: set[TaskId] = set()
        self._running: set[TaskId] = set()

    def apply(self, task: TaskId, counters: Counters, *, finished: bool = False) -> None:
        """Takes one report.

        Args:
            task: The attempt that reports.
            counters: Its counters since it began.
            finished: Its last report, whether it succeeded or failed.
        """
        if task in self._finished and not finished:
            return
        self._latest[task] = counters
        if finished:
            self._finished.add(task)
            self._running.discard(task)
        else:
            self._running.add(task)

    def lost(self, task: TaskId) -> None:
        """Takes note that an attempt is gone without a last report (killed worker, broken connection).

        What it spent still counts, what it had in flight does not. A later report of it brings it back.
        """
        self._running.discard(task)

    def totals(self) -> Counters:
        """The sum over the call. `cost_usd` is `None` only where no attempt knows a cost."""
        summed = _sums(self._latest.values())
        if len({(task.stage, task.partition) for task in self._latest}) < len(self._latest):
            rows = _sums(self._best_attempts())
            summed.update((name, rows[name]) for name in ROW_FIELDS)
        summed["in_flight"] = sum(self._latest[task].in_flight for task in self._running)
        return Counters(**summed)

    def _best_attempts(self) -> list[Counters]:
        best: dict[tuple[int, int], tuple[tuple[int, int], Counters]] = {}
        for task, counters in self._latest.items():
            place, rank = (task.stage, task.partition), (counters.rows_settled, task.attempt)
            if place not in best or best[place][0] < rank:
                best[place] = (rank, counters)
        return [counters for _, counters in best.values()]

    def latest(self) -> Mapping[TaskId, Counters]:
        """The latest counters of every attempt seen."""
        return dict(self._latest)

    def running(self) -> frozenset[TaskId]:
        """The attempts that have reported and neither finished nor got lost."""
        return frozenset(self._running)

    @property
    def attempts_seen(self) -> int:
        """Task attempts that have reported at least once."""
        return len(self._latest)

    @property
    def attempts_finished(self) -> int:
        """Task attempts that have sent their last report, failed ones included."""
        return len(self._finished)

    def copy(self) -> CallProgress:
        """An independent snapshot."""
        other = CallProgress()
        other._latest = dict(self._latest)
        other._finished = set(self._finished)
        other._running = set(self._running)
        return other


def _sums(items: Iterable[Counters]) -> dict[str, Any]:
    """Field by field; column-wise, which is the quickest way through the 100,000 attempts that a call can have."""
    rows = [msgspec.structs.astuple(counters) for counters in items]
    sums: dict[str, Any] = dict.fromkeys(FIELDS, 0)
    failures: Counter[str] = Counter()
    for name, column in zip(FIELDS, zip(*rows, strict=True), strict=False):
        if name == "failures":
            for kinds in column:
                failures.update(kinds)
        else:
            sums[name] = sum(value for value in column if value is not None) if name == "cost_usd" else sum(column)
    sums["failures"] = dict(failures)
    if all(counters[_COST] is None for counters in rows):
        sums["cost_usd"] = None
    return sums


_COST = FIELDS.index("cost_usd")

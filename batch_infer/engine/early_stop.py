"""Owns the decision that a job is not worth going on with. Pure; does not stop anything. On the driver."""

from __future__ import annotations

from dataclasses import dataclass

from batch_infer.contract.errors import ConfigError
from batch_infer.contract.options import DEFAULT_STOP_AFTER_FAILURES
from batch_infer.contract.progress import Counters

JUDGED_FROM = 100
"""Requests from which on a ratio of failed ones is more than chance."""


@dataclass(frozen=True, slots=True)
class EarlyStop:
    """When to send nothing further.

    Args:
        max_error_ratio: Failed requests of those that were asked now, at most, from the 100th on. 1 never stops.
        stop_after_failures: So many requests that failed in the same way, before any was answered. `None` never stops.

    Raises:
        ConfigError: a value is out of its range.
    """

    max_error_ratio: float = 1.0
    stop_after_failures: int | None = DEFAULT_STOP_AFTER_FAILURES

    def __post_init__(self) -> None:
        ratio, failures = self.max_error_ratio, self.stop_after_failures
        if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 <= ratio <= 1:
            raise ConfigError(f"max_error_ratio: {ratio!r} is not allowed; it is a number from 0 to 1.")
        if failures is not None and (isinstance(failures, bool) or not isinstance(failures, int) or failures < 1):
            raise ConfigError(
                f"stop_after_failures: {failures!r} is not allowed; it is a whole number above 0, or None."
            )

    def reason(self, totals: Counters) -> str | None:
        """Why to stop, in words that begin with "because", or `None`: go on."""
        kinds = {kind: count for kind, count in totals.failures.items() if kind != "not_sent"}
        failed = sum(kinds.values())
        answered = totals.rows_done - totals.rows_from_ledger
        if self.stop_after_failures is not None and not answered and len(kinds) == 1:
            ((kind, count),) = kinds.items()
            if count >= self.stop_after_failures:
                return f"because the first {count:,} requests all failed with {kind!r} (stop_after_failures)"
        asked = failed + answered
        if asked >= JUDGED_FROM and failed > self.max_error_ratio * asked:
            return f"because {failed:,} of {asked:,} requests failed (max_error_ratio {self.max_error_ratio:g})"
        return None

"""Owns the running count of one task: what the window counts up. `Counters` is the record of it that travels."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from batch_infer.contract.endpoint import Endpoint
from batch_infer.contract.progress import Counters
from batch_infer.contract.reply import Usage


@dataclass(slots=True)
class Tally:
    """Mutable twin of `contract.progress.Counters`, whose docstrings describe the fields. Written by one loop only."""

    rows_done: int = 0
    rows_failed: int = 0
    rows_null: int = 0
    rows_from_ledger: int = 0
    requests: int = 0
    attempts_repeated: int = 0
    throttled: int = 0
    ambiguous: int = 0
    in_flight: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    waiting_s: float = 0.0
    failures: dict[str, int] = field(default_factory=dict)
    unleased_tasks: int = 0

    def fail(self, kind: str) -> None:
        """Counts a row that failed for good."""
        self.rows_failed += 1
        self.failures[kind] = self.failures.get(kind, 0) + 1

    def bill(self, usage: Usage) -> None:
        """Adds what one row was billed."""
        self.prompt_tokens += usage.prompt_tokens or 0
        self.completion_tokens += usage.completion_tokens or 0
        self.cached_tokens += usage.cached_tokens or 0

    def snapshot(self, endpoint: Endpoint) -> Counters:
        """The record that travels; priced as the endpoint's prices say. Safe from another thread."""
        counted = {each.name: getattr(self, each.name) for each in fields(self)}
        counted["failures"] = dict(self.failures)
        cached = counted.pop("cached_tokens")
        cost = endpoint.cost_usd(self.prompt_tokens, self.completion_tokens, cached) if self.prompt_tokens else None
        return Counters(**counted, cost_usd=cost)

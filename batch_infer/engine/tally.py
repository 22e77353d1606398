"""Owns the running count of one task: what the window counts up. `Counters` is the record of it that travels.

On workers.
"""

from __future__ import annotations

import msgspec

from batch_infer.contract.endpoint import Endpoint
from batch_infer.contract.progress import Counters
from batch_infer.contract.reply import Usage


class Tally(Counters):
    """`Counters` that count; their docstrings describe the fields. Written by one loop only."""

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
        counted = Counters(*msgspec.structs.astuple(self))
        counted.failures = dict(self.failures)
        if self.prompt_tokens:
            counted.cost_usd = endpoint.cost_usd(self.prompt_tokens, self.completion_tokens, self.cached_tokens)
        return counted

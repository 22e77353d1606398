"""Owns batches on their way through a run: their rows, their order, and how much is kept. Does not ask for anything.

On workers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from batch_infer.contract.reply import Outcome, Usage
from batch_infer.contract.request import Request


class Batch(NamedTuple):
    """Rows that belong together on the way in and out. `None` is a NULL request: no call, a NULL result."""

    requests: Sequence[Request | None]
    tag: Any = None


class Finished(NamedTuple):
    """A batch, answered: one outcome per row, in the rows' order; `None` for a NULL request."""

    outcomes: list[Outcome | None]
    requests: Sequence[Request | None]
    tag: Any


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one task keeps in memory, and how rows are packed into requests."""

    retained_rows: int = 50_000
    """Rows read and not yet given back."""
    retained_bytes: int = 256 * 1024 * 1024
    """Bytes of their requests and replies."""
    rows_per_request: int = 1
    """More than 1 only where the protocol packs rows (embeddings)."""
    tokens_per_request: int = 100_000
    """Estimated tokens in one packed request."""
    completion_tokens: int = 0
    """Reserved for each row's reply under a token limit: `max_tokens`, or a default."""


class OpenBatch:
    """A batch on its way through."""

    __slots__ = ("batch", "left", "outcomes")

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.outcomes: list[Outcome | None] = [None] * len(batch.requests)
        self.left = len(batch.requests)


class Row:
    """One row that waits or is in flight."""

    __slots__ = ("attempts", "index", "open", "request", "usage")

    def __init__(self, request: Request, open_batch: OpenBatch, index: int) -> None:
        self.request = request
        self.open = open_batch
        self.index = index
        self.attempts = 0
        self.usage: Usage | None = None

    def bill(self, usage: Usage | None) -> None:
        """Adds what an attempt was billed that did not end the row."""
        if usage is not None:
            self.usage = usage if self.usage is None else self.usage.plus(usage)


class Shelf:
    """The batches that were read and not yet given back.

    Args:
        bounds: How much may be kept.
        ordered: Give them back in their order; else as they are done.
    """

    def __init__(self, bounds: Bounds, *, ordered: bool) -> None:
        self._bounds = bounds
        self._ordered = ordered
        self._open: deque[OpenBatch] = deque()  # in arrival order; used when ordered
        self._done: deque[OpenBatch] = deque()  # as they finish; used when not
        self._batches = 0
        self._rows = 0
        self._bytes = 0

    @property
    def is_empty(self) -> bool:
        """Whether all batches were given back."""
        return not self._batches

    @property
    def has_room(self) -> bool:
        """Whether another batch may be read."""
        return self._rows < self._bounds.retained_rows and self._bytes < self._bounds.retained_bytes

    def add(self, batch: Batch) -> OpenBatch:
        """Takes a batch in."""
        opened = OpenBatch(batch)
        self._batches += 1
        self._rows += len(batch.requests)
        self._bytes += sum(request.size_bytes for request in batch.requests if request is not None)
        if self._ordered:
            self._open.append(opened)
        return opened

    def settle(self, row: Row, outcome: Outcome) -> bool:
        """Keeps a row's outcome. Whether a batch may be ready now."""
        row.open.outcomes[row.index] = outcome
        self._bytes += _reply_bytes(outcome)
        return self.one_less(row.open)

    def one_less(self, opened: OpenBatch) -> bool:
        """A row of the batch needs no outcome, or has it. Whether a batch may be ready now."""
        opened.left -= 1
        if opened.left:
            return False
        if not self._ordered:
            self._done.append(opened)
            return True
        return opened is self._open[0]  # else an earlier batch is still on its way

    def take(self) -> Finished | None:
        """Gives back the next batch that is done; `None`: there is none."""
        if self._done:
            opened = self._done.popleft()
        elif self._open and self._open[0].left == 0:
            opened = self._open.popleft()
        else:
            return None
        self._batches -= 1
        self._rows -= len(opened.outcomes)
        for request, outcome in zip(opened.batch.requests, opened.outcomes, strict=True):
            if request is not None and outcome is not None:
                self._bytes -= request.size_bytes + _reply_bytes(outcome)
        return Finished(opened.outcomes, opened.batch.requests, opened.batch.tag)


def _reply_bytes(outcome: Outcome) -> int:
    reply = outcome.reply
    if reply is None:
        return 200
    return 200 + len(reply.text or "") + len(reply.message or "") + 8 * len(reply.embedding or ())

"""Owns the `Store` half of the seam: where paid replies are kept and found again. Does not read or write files.

`NoStore` keeps nothing: every row is asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from batch_infer.contract.reply import Outcome
from batch_infer.contract.request import Request


class Store(Protocol):
    """Durable memory of requests and replies, by `request_key`. Called on the event loop: must not block for long."""

    def find(self, keys: Sequence[str]) -> Mapping[str, Outcome]:
        """Outcomes that need no request: replies already paid for, and failures that would only repeat."""
        ...

    def intend(self, requests: Sequence[Request]) -> None:
        """Records, before they are sent, that these requests are about to be."""
        ...

    def record(self, request: Request, outcome: Outcome) -> None:
        """Records what became of a request, before its row is yielded."""
        ...


class NoStore:
    """Remembers nothing."""

    def find(self, keys: Sequence[str]) -> Mapping[str, Outcome]:  # noqa: ARG002 - the protocol's
        """See `Store.find`."""
        return {}

    def intend(self, requests: Sequence[Request]) -> None:
        """See `Store.intend`."""

    def record(self, request: Request, outcome: Outcome) -> None:
        """See `Store.record`."""

    def close(self) -> None:
        """Has nothing to close."""

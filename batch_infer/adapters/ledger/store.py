"""Owns the `Store` that the engine asks: a ledger to find in, a writer to record with. Does not touch files itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from batch_infer.adapters.ledger.reader import Ledger
from batch_infer.adapters.ledger.twins import TwinLogs
from batch_infer.adapters.ledger.writer import LedgerWriter
from batch_infer.contract.ledger import record_of
from batch_infer.contract.reply import Outcome
from batch_infer.contract.request import Request

Price = Callable[[Outcome], "float | None"]
"""What an outcome cost in US dollars; `None` when that is not known."""


class LedgerStore:
    """`engine.store.Store` on a ledger, for one task attempt.

    Contract: finds what the ledger held at its last `refresh`, and what this task recorded itself.

    Args:
        ledger: May be shared by the tasks of a process.
        writer: Of this task attempt alone; `close` closes it.
        endpoint: The endpoint's local name, for the inference table and `purge`.
        model: What is asked for, shown where the reply does not name one.
        price: `None`: costs are not known.
        fresh: Do not answer from the ledger. What is recorded takes precedence over all earlier answers.
        fresh_since: With `fresh`, seconds since 1970 when the job began: fresh answers since then are found, so
            that a second attempt of a task does not ask again. `None`: nothing is found.
        keep_requests: Whether prompts and messages are recorded.
        twins: Where what the same task's other evaluations record is found at once.
    """

    def __init__(
        self,
        ledger: Ledger,
        writer: LedgerWriter,
        *,
        endpoint: str = "",
        model: str | None = None,
        price: Price | None = None,
        fresh: bool = False,
        fresh_since: float | None = None,
        keep_requests: bool = True,
        twins: TwinLogs | None = None,
    ) -> None:
        self._ledger = ledger
        self._writer = writer
        self._endpoint = endpoint
        self._model = model
        self._price = price
        self._fresh = fresh
        self._since = fresh_since
        self._keep_requests = keep_requests
        self._twins = twins

    def find(self, keys: Sequence[str]) -> Mapping[str, Outcome]:
        """See `Store.find`."""
        if self._fresh and self._since is None:
            return {}
        since = self._since if self._fresh else None
        found = self._ledger.find(keys, since=since)
        if len(found) < len(keys):
            missing = [key for key in keys if key not in found]
            if missing:
                found.update(self._writer.find(missing, since=since))
                if self._twins is not None and len(found) < len(keys):
                    found.update(self._twins.find([key for key in missing if key not in found]))
        return found

    def intend(self, requests: Sequence[Request]) -> None:
        """See `Store.intend`.

        Raises:
            SinkError: the reply might not be kept; do not send the request.
        """
        self._writer.intend([request.key for request in requests], self._endpoint)

    def record(self, request: Request, outcome: Outcome) -> None:
        """See `Store.record`.

        Raises:
            SinkError: it was not kept.
        """
        self._writer.record(
            record_of(
                request.key,
                request.content if self._keep_requests else None,
                outcome,
                at_us=self._writer.now_us(),
                fresh=self._fresh,
                endpoint=self._endpoint,
                model=self._model,
                cost_usd=self._price(outcome) if self._price is not None else None,
                files=len(request.files),
                origin=request.origin,
            )
        )

    def close(self) -> None:
        """Finishes the writer's log. Idempotent. What was recorded is kept without it, too."""
        self._writer.close()
        if self._twins is not None:
            self._twins.close()

"""Owns the `Store` that the engine asks: a ledger to find in, a writer to record with. Does not touch files itself.

On driver and workers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from batch_infer.adapters.ledger.live_logs import TwinLogs
from batch_infer.adapters.ledger.reader import Ledger
from batch_infer.adapters.ledger.records import is_final, record_of, same_run
from batch_infer.adapters.ledger.writer import LedgerWriter
from batch_infer.contract.reply import Outcome
from batch_infer.contract.request import Request

Price = Callable[[Outcome], "float | None"]
"""What an outcome cost in US dollars; `None` when that is not known."""


class LedgerStore:
    """`engine.store.Store` on a ledger, for one task attempt.

    Contract: finds what the ledger held at its last `refresh`, and what this task recorded itself: answers, and
    failures that the endpoint would only give again.

    Args:
        ledger: May be shared by the tasks of a process.
        writer: Of this task attempt alone; `close` closes it.
        endpoint: The endpoint's local name, for the inference table and `purge`.
        model: What is asked for, shown where the reply does not name one.
        price: `None`: costs are not known.
        run: Names the run; recorded with all that it sends.
        fresh: Do not answer from the ledger, but with what this run itself has asked, in an earlier attempt of a
            task or before it was continued. What is recorded takes precedence over all earlier answers.
        retry_failed: Find no failures but this run's own.
        fail_fast: A failure ends the run. So, with `fresh` or `retry_failed`, one that ended the run is asked again
            once it is continued: found, it would only end it once more.
        result_type: A digest of the type asked for: a failure to be of another type is not found.
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
        run: str = "",
        fresh: bool = False,
        retry_failed: bool = False,
        fail_fast: bool = False,
        result_type: str = "",
        keep_requests: bool = True,
        twins: TwinLogs | None = None,
    ) -> None:
        self._ledger = ledger
        self._writer = writer
        self._endpoint = endpoint
        self._model = model
        self._price = price
        self._run = run
        self._fresh = fresh
        self._retry_failed = retry_failed
        self._fail_fast = fail_fast
        self._result_type = result_type
        self._keep_requests = keep_requests
        self._twins = twins
        self._after_us = 0  # of what was found and not served: what is recorded now is later, whatever the clocks say

    def find(self, keys: Sequence[str]) -> Mapping[str, Outcome]:
        """See `Store.find`."""
        found = self._served(self._ledger.find(keys, failures=True))
        missing = [key for key in keys if key not in found]
        if missing:
            found.update(self._served(self._writer.find(missing)))
            missing = [key for key in missing if key not in found]
        if missing and self._twins is not None:
            found.update(self._served(self._twins.find(missing)))
        return found

    def _served(self, found: Mapping[str, Outcome]) -> dict[str, Outcome]:
        served = {}
        for key, outcome in found.items():
            if self._serves(outcome):
                served[key] = outcome
            else:
                self._after_us = max(self._after_us, outcome.at_us)
        return served

    def _serves(self, outcome: Outcome) -> bool:
        if self._fresh and not same_run(self._run, outcome.run):
            return False
        if outcome.failure is None:
            return True
        is_asked_again = self._retry_failed and not same_run(self._run, outcome.run)
        if self._fail_fast and (self._fresh or self._retry_failed):
            is_asked_again = outcome.run != self._run
        return not is_asked_again and is_final(outcome, self._result_type)

    def intend(self, requests: Sequence[Request]) -> None:
        """See `Store.intend`.

        Raises:
            SinkError: the reply might not be kept; do not send the request.
        """
        self._writer.intend([request.key for request in requests], self._endpoint, self._run)

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
                at_us=max(self._writer.now_us(), self._after_us + 1),
                fresh=self._fresh,
                endpoint=self._endpoint,
                model=self._model,
                cost_usd=self._price(outcome) if self._price is not None else None,
                files=len(request.files),
                origin=request.origin,
                run=self._run,
                result_type=self._result_type,
            )
        )

    def close(self) -> None:
        """Finishes the writer's log. Idempotent. What was recorded is kept without it, too."""
        self._writer.close()
        if self._twins is not None:
            self._twins.close()

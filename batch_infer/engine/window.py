"""Owns the window: which requests are in flight, and the order in which their batches come back. Does no I/O.

    run(batches, send, permits, store, clock) → outcomes

Rows arrive in batches and leave in the same batches, but what is in flight does not know about batches: a worker takes
the next waiting row whatever batch it came from, so a slow row holds back its own batch only, not the others' calls.
What is kept is bounded (`Bounds`): reading stops when too many rows wait, or too many are kept behind a slow one.

    batches ──▶ reader ──▶ waiting ──▶ workers (≤ permits.max_in_flight) ──▶ open batches ──▶ results()

On workers.
"""

from __future__ import annotations

import asyncio
import random as random_module
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

from batch_infer.contract.errors import EndpointError, RowRejected, WrongReply
from batch_infer.contract.reply import Failure, Outcome, Reply, Usage
from batch_infer.engine.attempts import Asking
from batch_infer.engine.batches import Batch, Bounds, Finished, Row, Shelf
from batch_infer.engine.ports import Clock, Permits, Send, Store
from batch_infer.engine.retry import RetryPolicy
from batch_infer.engine.tally import Tally


class Run:
    """One pass over a stream of batches. Make it on the event loop that runs it; iterate `results()` once.

    Args:
        batches: The input; read only as far ahead as `bounds` and the window allow.
        send: One attempt for one packed request.
        permits: When a request may be sent.
        store: Where replies are found and recorded.
        clock: Time.
        policy: Bounds of retries.
        bounds: Bounds of memory, and packing.
        fail_fast: Raise at the first row that fails for good (`failOnError => true`), instead of keeping its failure.
        coalesce: Send equal requests of this run once, and give all their rows the one reply.
        ordered: Give batches back in their order; else as they are done.
        tally: Counted up as things happen, for the progress report.
        random: Uniform in [0, 1), for jitter.
    """

    def __init__(
        self,
        batches: AsyncIterator[Batch],
        send: Send,
        permits: Permits,
        store: Store,
        clock: Clock,
        *,
        policy: RetryPolicy,
        bounds: Bounds | None = None,
        fail_fast: bool = False,
        coalesce: bool = False,
        ordered: bool = True,
        tally: Tally | None = None,
        random: Callable[[], float] = random_module.random,
    ) -> None:
        self._batches = batches
        self._permits = permits
        self._store = store
        self._bounds = bounds or Bounds()
        self._fail_fast = fail_fast
        self._coalesce = coalesce
        self._tally = tally if tally is not None else Tally()
        self._asking = Asking(
            send,
            permits,
            store,
            clock,
            policy=policy,
            completion_tokens=self._bounds.completion_tokens,
            tally=self._tally,
            random=random,
            on_finished=self._finish,
            on_unsent=self._leave_unsent,
        )

        self._waiting: deque[Row] = deque()
        self._followers: dict[str, list[Row]] = {}  # by key of a request under way: further rows that ask the same
        self._shelf = Shelf(self._bounds, ordered=ordered)
        self._workers: set[asyncio.Task[None]] = set()
        self._reader: asyncio.Task[None] | None = None
        self._exhausted = False
        self._error: BaseException | None = None
        self._changed = asyncio.Event()
        self._room = asyncio.Event()

    async def results(self) -> AsyncIterator[Finished]:
        """The answered batches.

        Raises:
            JobRejected: no row can succeed.
            EndpointError: a row failed for good, with `fail_fast`; the message names its request key.
        """
        self._reader = asyncio.ensure_future(self._read())
        try:
            while True:
                if self._error is not None:
                    raise self._error
                finished = self._shelf.take()
                if finished is not None:
                    if self._has_room():
                        self._room.set()
                    yield finished
                elif self._exhausted and self._shelf.is_empty:
                    return
                else:
                    self._changed.clear()
                    await self._changed.wait()
        finally:
            await self.close()

    def stop(self, error: BaseException) -> None:
        """Ends the run from outside: `results()` raises `error`, and nothing more is sent. On the run's own loop."""
        if self._error is None:
            self._error = error
        self._asking.stopped = True
        self._cancel_all()
        self._changed.set()

    def halt(self, reason: str) -> None:
        """Sends nothing further: what is in flight comes home, every other row fails as `not_sent`. On the run's loop.

        A row that was sent before and waits to be sent again keeps the error of its last attempt.
        """
        self._asking.halt(reason)

    async def close(self) -> None:
        """Cancels whatever is in flight. Idempotent."""
        await asyncio.gather(*self._cancel_all(), return_exceptions=True)

    def _cancel_all(self) -> list[asyncio.Task[None]]:
        tasks = [*self._workers, *([self._reader] if self._reader else [])]
        for task in tasks:
            task.cancel()
        watching = self._asking.close()
        return tasks if watching is None else [*tasks, watching]

    # Reading

    async def _read(self) -> None:
        try:
            async for batch in self._batches:
                self._admit(batch)
                while not self._has_room():
                    self._room.clear()
                    await self._room.wait()
        except Exception as error:  # noqa: BLE001 - whatever the input raises is the run's own outcome
            self.stop(error)
        finally:
            self._exhausted = True
            self._changed.set()

    def _has_room(self) -> bool:
        ahead = 2 * self._permits.max_in_flight * self._bounds.rows_per_request
        return len(self._waiting) < ahead and self._shelf.has_room

    def _admit(self, batch: Batch) -> None:
        opened = self._shelf.add(batch)
        found = self._store.find([request.key for request in batch.requests if request is not None])
        for index, request in enumerate(batch.requests):
            if request is None:
                self._tally.rows_null += 1
                self._note(ready=self._shelf.one_less(opened))
                continue
            row = Row(request, opened, index)
            known = found.get(request.key)
            if known is not None:
                self._serve(row, known)
            elif request.problem:
                self._finish(row, RowRejected(request.problem, kind="bad_request"), None)
            elif request.key in self._followers:
                self._followers[request.key].append(row)
            else:
                if self._coalesce:
                    self._followers[request.key] = []
                self._waiting.append(row)
        packs = -(-len(self._waiting) // self._bounds.rows_per_request)
        for _ in range(min(packs, self._permits.max_in_flight - len(self._workers))):
            worker = asyncio.ensure_future(self._work())
            self._workers.add(worker)

    def _serve(self, row: Row, known: Outcome) -> None:
        """A row whose outcome is known from before."""
        failure = known.failure
        if failure is None:
            self._tally.rows_from_ledger += 1
        elif self._fail_fast:
            raise RowRejected(
                f"request {row.request.key}: {failure.message} (Known from the ledger: nothing was sent now. To ask "
                "again: fresh => true; in a job, retry_failed.)",
                kind=failure.kind,
                status=failure.status,
                attempts=known.attempts,
            )
        self._settle(row, known)

    # Sending

    async def _work(self) -> None:
        try:
            while self._waiting and self._error is None:
                await self._asking.ask(self._take())
        except Exception as error:  # noqa: BLE001 - a job's error, or a defect: it ends the run, not one worker
            self.stop(error)
        finally:  # not a callback, which would come after rows that were read meanwhile, and find no worker
            self._workers.discard(asyncio.current_task())

    def _take(self) -> list[Row]:
        rows = [self._waiting.popleft()]
        tokens = rows[0].request.prompt_tokens
        while self._waiting and len(rows) < self._bounds.rows_per_request:
            tokens += self._waiting[0].request.prompt_tokens
            if tokens > self._bounds.tokens_per_request:
                break
            rows.append(self._waiting.popleft())
        if not self._room.is_set() and self._has_room():
            self._room.set()
        return rows

    # Finishing

    def _finish(self, row: Row, result: Reply | EndpointError, latency_ms: int | None) -> None:
        """A row that was sent has its final result."""
        if isinstance(result, Reply):
            usage = result.usage if row.usage is None else row.usage.plus(result.usage)
            outcome = Outcome(reply=result, usage=usage, attempts=row.attempts, latency_ms=latency_ms)
        else:
            said = result.reply if isinstance(result, WrongReply) else None
            failure = Failure(result.kind, result.message, result.status, result.retryable, said)
            usage = row.usage or Usage()
            if isinstance(result, RowRejected) and result.usage is not None:
                usage = result.usage if row.usage is None else row.usage.plus(result.usage)
            outcome = Outcome(failure=failure, usage=usage, attempts=row.attempts, latency_ms=latency_ms)
        self._tally.bill(usage)
        self._store.record(row.request, outcome)
        if self._fail_fast and isinstance(result, EndpointError):
            result.attempts = row.attempts
            result.message = f"request {row.request.key}: {result.message}"
            result.args = (result.message,)
            raise result
        self._settle(row, outcome)
        for follower in self._followers.pop(row.request.key, ()):
            if outcome.failure is None:
                self._tally.rows_from_ledger += 1
                shared = Outcome(reply=outcome.reply, usage=outcome.usage, from_ledger=True)
            else:
                shared = Outcome(failure=outcome.failure)  # billed, if at all, to the row that was sent
            self._settle(follower, shared)

    def _leave_unsent(self, row: Row, reason: str) -> None:
        unsent = Outcome(failure=Failure("not_sent", reason, retryable=True))
        for one in (row, *self._followers.pop(row.request.key, ())):
            self._settle(one, unsent)

    def _settle(self, row: Row, outcome: Outcome) -> None:
        if outcome.failure is None:
            self._tally.rows_done += 1
        elif outcome.from_ledger:
            self._tally.rows_failed += 1  # it failed before, and says nothing about this run
        else:
            self._tally.fail(outcome.failure.kind)
        self._note(ready=self._shelf.settle(row, outcome))

    def _note(self, *, ready: bool) -> None:
        if ready:
            self._changed.set()


def run(
    batches: AsyncIterator[Batch], send: Send, permits: Permits, store: Store, clock: Clock, **options: Any
) -> AsyncIterator[Finished]:
    """The seam, in one call: `Run(...).results()`."""
    return Run(batches, send, permits, store, clock, **options).results()

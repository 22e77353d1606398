"""Owns the window: which requests are in flight, and the order in which their batches come back. Does no I/O.

    run(batches, send, permits, store, clock) → outcomes

Rows arrive in batches and leave in the same batches, but what is in flight does not know about batches: a worker takes
the next waiting row whatever batch it came from, so a slow row holds back its own batch only, not the others' calls.
What is kept is bounded (`Bounds`): reading stops when too many rows wait, or too many are kept behind a slow one.

    batches ──▶ reader ──▶ waiting ──▶ workers (≤ permits.max_in_flight) ──▶ open batches ──▶ results()
"""

from __future__ import annotations

import asyncio
import random as random_module
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from batch_infer.contract.errors import Ambiguous, EndpointError, JobRejected, RowRejected, Throttled, WrongReply
from batch_infer.contract.limits import Amount, Limits
from batch_infer.contract.reply import Failure, Outcome, Reply, Usage
from batch_infer.contract.request import Request
from batch_infer.engine.clock import Clock
from batch_infer.engine.estimate import OutputEstimate
from batch_infer.engine.permits import Ending, Permit, Permits
from batch_infer.engine.retry import RetryPolicy, RetryState, repairing, wait_before_retry
from batch_infer.engine.store import Store
from batch_infer.engine.tally import Tally

Send = Callable[[Sequence[Request]], Awaitable["Sequence[Reply | EndpointError]"]]
"""Sends one HTTP request for one or more rows, once; a result per row, or raises `EndpointError` for all of them."""

UNREACHABLE = frozenset({"connect", "connect_timeout", "dns"})


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


class _Open:
    """A batch on its way through."""

    __slots__ = ("batch", "left", "outcomes")

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.outcomes: list[Outcome | None] = [None] * len(batch.requests)
        self.left = len(batch.requests)


class _Row:
    """One row that waits or is in flight."""

    __slots__ = ("attempts", "index", "open", "request", "usage")

    def __init__(self, request: Request, open_batch: _Open, index: int) -> None:
        self.request = request
        self.open = open_batch
        self.index = index
        self.attempts = 0
        self.usage: Usage | None = None

    def bill(self, usage: Usage | None) -> None:
        """Adds what an attempt was billed that did not end the row."""
        if usage is not None:
            self.usage = usage if self.usage is None else self.usage.plus(usage)


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
        seen: What the endpoint's headers said last; told to the permits with every reply.
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
        seen: Callable[[], Limits | None] = lambda: None,
        coalesce: bool = False,
        ordered: bool = True,
        tally: Tally | None = None,
        random: Callable[[], float] = random_module.random,
    ) -> None:
        self._batches = batches
        self._send = send
        self._permits = permits
        self._store = store
        self._clock = clock
        self._policy = policy
        self._bounds = bounds or Bounds()
        self._fail_fast = fail_fast
        self._seen = seen
        self._coalesce = coalesce
        self._ordered = ordered
        self._tally = tally if tally is not None else Tally()
        self._random = random

        self._waiting: deque[_Row] = deque()
        self._followers: dict[str, list[_Row]] = {}  # by key of a request under way: further rows that ask the same
        self._open: deque[_Open] = deque()  # in arrival order; used when ordered
        self._done: deque[_Open] = deque()  # as they finish; used when not
        self._unreturned = 0
        self._retained_rows = 0
        self._retained_bytes = 0
        self._workers: set[asyncio.Task[None]] = set()
        self._reader: asyncio.Task[None] | None = None
        self._exhausted = False
        self._answered_once = False
        self._error: BaseException | None = None
        self._halted: str | None = None
        self._acquiring: set[asyncio.Task[None] | None] = set()
        self._estimate = OutputEstimate(self._bounds.completion_tokens)
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
                finished = self._next_finished()
                if finished is not None:
                    self._release(finished)
                    yield Finished(finished.outcomes, finished.batch.requests, finished.batch.tag)
                elif self._exhausted and not self._unreturned:
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
        for task in (*self._workers, *([self._reader] if self._reader else [])):
            task.cancel()
        self._changed.set()

    def halt(self, reason: str) -> None:
        """Sends nothing further: what is in flight comes home, every other row fails as `not_sent`. On the run's loop.

        A row that was sent before and waits to be sent again keeps the error of its last attempt.
        """
        if self._halted is None:
            self._halted = reason
            for task in self._acquiring:
                if task is not None:
                    task.cancel()

    async def close(self) -> None:
        """Cancels whatever is in flight. Idempotent."""
        tasks = [*self._workers, *([self._reader] if self._reader else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

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
        return (
            len(self._waiting) < ahead
            and self._retained_rows < self._bounds.retained_rows
            and self._retained_bytes < self._bounds.retained_bytes
        )

    def _admit(self, batch: Batch) -> None:
        opened = _Open(batch)
        self._unreturned += 1
        if self._ordered:
            self._open.append(opened)
        self._retained_rows += len(batch.requests)
        found = self._store.find([request.key for request in batch.requests if request is not None])
        for index, request in enumerate(batch.requests):
            if request is None:
                self._tally.rows_null += 1
                self._one_less(opened)
                continue
            self._retained_bytes += request.size_bytes
            row = _Row(request, opened, index)
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

    def _serve(self, row: _Row, known: Outcome) -> None:
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
                await self._perform(self._take())
        except Exception as error:  # noqa: BLE001 - a job's error, or a defect: it ends the run, not one worker
            self.stop(error)
        finally:  # not a callback, which would come after rows that were read meanwhile, and find no worker
            self._workers.discard(asyncio.current_task())

    def _take(self) -> list[_Row]:
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

    async def _perform(self, rows: list[_Row]) -> None:
        """Sends rows as one request until each has its outcome."""
        requests = [row.request for row in rows]
        state = RetryState(self._clock.now())
        prompt_tokens = sum(request.prompt_tokens for request in requests)
        failed: EndpointError | None = None
        latency_s = wait_s = 0.0
        while True:
            try:
                need = Amount(1, prompt_tokens, self._estimate.tokens * len(rows))
                permit = await self._acquire(need, wait_s, again=state.attempts > 0)
            except RowRejected as error:
                await self._give_up(rows, state, error, None)
                return
            if permit is None:
                self._leave_unsent(rows, state, failed, latency_s)
                return
            self._tally.waiting_s += wait_s + permit.waited_s
            sent_at = self._clock.now()
            failed, results = await self._attempt(requests, state, permit)
            latency_s = self._clock.now() - sent_at
            self._end(permit, failed, results, latency_s)
            if failed is None:
                self._answered_once = True
                again = repairing(self._policy, state, requests[0], results[0]) if len(rows) == 1 else None
                if again is None:
                    for row, result in zip(rows, results, strict=True):
                        row.attempts += state.attempts
                        self._finish(row, result, round(latency_s * 1000))
                    return
                failed, wait_s = cast("EndpointError", results[0]), 0.0
                rows[0].bill(failed.usage)
                failed.usage = None  # it is billed, also if the run is halted before the row is asked again
                prompt_tokens += again.prompt_tokens - requests[0].prompt_tokens
                requests = [again]
                continue
            pause_s = self._after_failure(rows, state, failed)
            if pause_s is None:
                await self._give_up(rows, state, failed, round(latency_s * 1000))
                return
            wait_s = pause_s

    async def _attempt(
        self, requests: list[Request], state: RetryState, permit: Permit
    ) -> tuple[EndpointError | None, Sequence[Reply | EndpointError]]:
        """Sends once: what failed for all of the rows, or what each of them has."""
        tally = self._tally
        tally.in_flight += 1
        try:
            self._store.intend(requests)
            state.attempts += 1
            tally.requests += 1
            tally.attempts_repeated += state.attempts > 1
            return None, await self._send(requests)
        except EndpointError as error:
            return error, ()
        except BaseException:
            self._permits.settle(permit, Ending.CANCELLED)
            raise
        finally:
            tally.in_flight -= 1

    def _end(
        self, permit: Permit, failed: EndpointError | None, results: Sequence[Reply | EndpointError], latency_s: float
    ) -> None:
        """Tells the permits what became of a request that was sent."""
        if failed is None:
            ending, used = Ending.ACCEPTED, self._used(results)
        else:
            ending, used = _ending(failed), None if isinstance(failed, Ambiguous) else Amount(1)
        self._permits.settle(
            permit,
            ending,
            used=used,
            latency_s=latency_s,
            retry_after_s=failed.retry_after_s if isinstance(failed, Throttled) else None,
            seen=self._seen(),
        )

    async def _acquire(self, need: Amount, pause_s: float, *, again: bool) -> Permit | None:
        """A permit, after a pause; `None` when nothing further is to be sent."""
        if self._halted is not None:
            return None
        task = asyncio.current_task()
        self._acquiring.add(task)
        try:
            if pause_s > 0:
                await self._clock.sleep(pause_s)
            return await self._permits.acquire(need, again=again)
        except asyncio.CancelledError:
            if self._halted is None or self._error is not None:
                raise
            return None
        finally:
            self._acquiring.discard(task)

    def _leave_unsent(
        self, rows: list[_Row], state: RetryState, failed: EndpointError | None, latency_s: float
    ) -> None:
        """Rows of a halted run: those that were sent before end with the error of their last attempt."""
        for row in rows:
            row.attempts += state.attempts
            if failed is not None:
                self._finish(row, failed, round(latency_s * 1000))
                continue
            unsent = Outcome(failure=Failure("not_sent", self._halted or "", retryable=True))
            self._settle(row, unsent)
            for follower in self._followers.pop(row.request.key, ()):
                self._settle(follower, unsent)

    def _used(self, results: Sequence[Reply | EndpointError]) -> Amount | None:
        """What one request was billed, or `None` where the endpoint did not say; output sizes are learned from it."""
        prompt = completion = 0
        for result in results:
            usage = result.usage
            if usage is None or usage.total_tokens is None:
                return None
            spent = usage.completion_tokens or 0
            prompt += usage.total_tokens - spent
            completion += spent
            self._estimate.learn(spent)
        return Amount(1, prompt, completion)

    def _after_failure(self, rows: list[_Row], state: RetryState, error: EndpointError) -> float | None:
        """Counts a failed attempt; the seconds to wait before the next one, or `None` for no further one."""
        self._tally.throttled += isinstance(error, Throttled)
        self._tally.ambiguous += isinstance(error, Ambiguous)
        if isinstance(error, JobRejected):
            error.attempts = state.attempts
            raise error
        if len(rows) == 1:
            rows[0].bill(error.usage)
        return wait_before_retry(self._policy, state, error, self._clock.now(), self._random)

    async def _give_up(self, rows: list[_Row], state: RetryState, error: EndpointError, latency_ms: int | None) -> None:
        if isinstance(error, RowRejected) and len(rows) > 1:
            # One bad text refuses the whole pack: halve it until that text stands alone.
            for row in rows:
                row.attempts += state.attempts
            middle = len(rows) // 2
            await self._perform(rows[:middle])
            await self._perform(rows[middle:])
            return
        if error.kind in UNREACHABLE and not self._answered_once:
            raise JobRejected(
                f"{error.message} Tried {state.attempts} times, and nothing was ever answered, so the job stops.",
                kind="unreachable",
                attempts=state.attempts,
            )
        for row in rows:
            row.attempts += state.attempts
            self._finish(row, error, latency_ms)

    # Finishing

    def _finish(self, row: _Row, result: Reply | EndpointError, latency_ms: int | None) -> None:
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

    def _settle(self, row: _Row, outcome: Outcome) -> None:
        opened = row.open
        opened.outcomes[row.index] = outcome
        self._retained_bytes += _reply_bytes(outcome)
        if outcome.failure is None:
            self._tally.rows_done += 1
        elif outcome.from_ledger:
            self._tally.rows_failed += 1  # it failed before, and says nothing about this run
        else:
            self._tally.fail(outcome.failure.kind)
        self._one_less(opened)

    def _one_less(self, opened: _Open) -> None:
        opened.left -= 1
        if opened.left:
            return
        if not self._ordered:
            self._done.append(opened)
        elif opened is not self._open[0]:
            return  # an earlier batch is still on its way
        self._changed.set()

    def _next_finished(self) -> _Open | None:
        if self._done:
            return self._done.popleft()
        if self._open and self._open[0].left == 0:
            return self._open.popleft()
        return None

    def _release(self, opened: _Open) -> None:
        self._unreturned -= 1
        self._retained_rows -= len(opened.outcomes)
        for request, outcome in zip(opened.batch.requests, opened.outcomes, strict=True):
            if request is not None and outcome is not None:
                self._retained_bytes -= request.size_bytes + _reply_bytes(outcome)
        if self._has_room():
            self._room.set()


def _ending(failed: EndpointError) -> Ending:
    if isinstance(failed, Throttled):
        return Ending.THROTTLED
    return Ending.FAILED if failed.status is None else Ending.ACCEPTED


def _reply_bytes(outcome: Outcome) -> int:
    reply = outcome.reply
    if reply is None:
        return 200
    return 200 + len(reply.text or "") + len(reply.message or "") + 8 * len(reply.embedding or ())


def run(
    batches: AsyncIterator[Batch], send: Send, permits: Permits, store: Store, clock: Clock, **options: Any
) -> AsyncIterator[Finished]:
    """The seam, in one call: `Run(...).results()`."""
    return Run(batches, send, permits, store, clock, **options).results()

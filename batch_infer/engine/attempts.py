"""Owns the way of one request, of one row or a pack, to the outcome of its rows: permits, attempts, repairs, bisection.

Does not know batches, and does not keep outcomes: it tells them.

On workers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import cast

from batch_infer.contract.errors import Ambiguous, EndpointError, JobRejected, RowRejected, Throttled
from batch_infer.contract.limits import Amount
from batch_infer.contract.reply import Reply
from batch_infer.contract.request import Request
from batch_infer.engine.batches import Row
from batch_infer.engine.ports import Clock, Ending, Permit, Permits, Send, Sent, Store
from batch_infer.engine.retry import Patience, RetryPolicy, RetryState, repairing, wait_before_retry
from batch_infer.engine.tally import Tally
from batch_infer.engine.token_estimates import OutputEstimate

UNREACHABLE = frozenset({"connect", "connect_timeout", "dns"})


class Asking:
    """Asks for rows. Any number of `ask` may be under way at the same time, on one event loop.

    Args:
        send: One attempt for one packed request.
        permits: When a request may be sent.
        store: Where requests are recorded before they are sent.
        clock: Time.
        policy: Bounds of retries.
        completion_tokens: Reserved for each row's reply until output sizes are learned.
        tally: Counted up as things happen.
        random: Uniform in [0, 1), for jitter.
        on_finished: Told each row's final result, and the latency of its last attempt in milliseconds.
        on_unsent: Told each row that is never sent, and why.

    Attributes:
        halted: Why nothing further is sent; `None`: go on.
        stopped: The run is over; cancellation ends `ask`.
    """

    def __init__(
        self,
        send: Send,
        permits: Permits,
        store: Store,
        clock: Clock,
        *,
        policy: RetryPolicy,
        completion_tokens: int,
        tally: Tally,
        random: Callable[[], float],
        on_finished: Callable[[Row, Reply | EndpointError, int | None], None],
        on_unsent: Callable[[Row, str], None],
    ) -> None:
        self.halted: str | None = None
        self.stopped = False
        self._send = send
        self._permits = permits
        self._store = store
        self._clock = clock
        self._policy = policy
        self._estimate = OutputEstimate(completion_tokens)
        self._tally = tally
        self._random = random
        self._on_finished = on_finished
        self._on_unsent = on_unsent
        self._answered_once = False
        self._patience = Patience(clock, policy.throttle_deadline_s)

    def halt(self, reason: str) -> None:
        """Sends nothing further. Rows that wait are told at once, those in flight come home."""
        if self.halted is None:
            self.halted = reason
            self._patience.interrupt()

    def close(self) -> asyncio.Task[None] | None:
        """Ends what runs beside `ask`; the task that ends with that, to be waited for."""
        return self._patience.close()

    async def ask(self, rows: list[Row], failed: EndpointError | None = None) -> None:
        """Sends rows as one request until each has its outcome; `failed` is what became of a larger pack of them."""
        requests = [row.request for row in rows]
        state = RetryState(self._clock.now())
        prompt_tokens = sum(request.prompt_tokens for request in requests)
        latency_s = wait_s = 0.0
        while True:
            try:
                need = Amount(1, prompt_tokens, self._estimate.tokens * len(rows))
                permit = await self._acquire(need, wait_s, state)
            except RowRejected as error:
                await self._give_up(rows, state, error, None)
                return
            if permit is None and state.is_overdue and self.halted is None:
                await self._give_up(rows, state, self._patience.given_up(failed), None)
                return
            if permit is None:
                self._leave_unsent(rows, state, failed, latency_s)
                return
            self._tally.waiting_s += wait_s + permit.waited_s
            sent_at = self._clock.now()
            failed, sent = await self._attempt(requests, state, permit)
            results = sent.results
            latency_s = self._clock.now() - sent_at
            self._end(permit, failed, sent, latency_s)
            self._patience.note(failed, sent_at)
            if failed is None:
                self._answered_once = True
                again = repairing(self._policy, state, requests[0], results[0]) if len(rows) == 1 else None
                if again is None:
                    for row, result in zip(rows, results, strict=True):
                        row.attempts += state.attempts
                        self._on_finished(row, result, round(latency_s * 1000))
                    return
                failed, wait_s = cast("EndpointError", results[0]), 0.0
                rows[0].bill(failed.usage)
                failed.usage = None  # it is billed, also if the run is halted before the row is asked again
                prompt_tokens += again.prompt_tokens - requests[0].prompt_tokens
                requests = [again]
                continue
            pause_s = self._after_failure(rows, state, failed)
            if pause_s is None:
                failed = self._patience.given_up(failed) if isinstance(failed, Throttled) else failed
                await self._give_up(rows, state, failed, round(latency_s * 1000))
                return
            wait_s = pause_s

    async def _attempt(
        self, requests: list[Request], state: RetryState, permit: Permit
    ) -> tuple[EndpointError | None, Sent]:
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
            return error, Sent((), error.limits)
        except BaseException:
            self._permits.settle(permit, Ending.CANCELLED)
            raise
        finally:
            tally.in_flight -= 1

    def _end(self, permit: Permit, failed: EndpointError | None, sent: Sent, latency_s: float) -> None:
        """Tells the permits what became of a request that was sent."""
        if failed is None:
            ending, used = Ending.ACCEPTED, self._used(sent.results)
        else:
            ending, used = _ending(failed), None if isinstance(failed, Ambiguous) else Amount(1)
        self._permits.settle(
            permit,
            ending,
            used=used,
            latency_s=latency_s,
            retry_after_s=failed.retry_after_s if isinstance(failed, Throttled) else None,
            seen=sent.limits,
        )

    async def _acquire(self, need: Amount, pause_s: float, state: RetryState) -> Permit | None:
        """A permit, after a pause; `None` when nothing further is to be sent, or the wait `is_overdue`."""
        if self.halted is not None:
            return None
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self._patience.begin(task, state)
        try:
            if pause_s > 0:
                await self._clock.sleep(pause_s)
            return await self._permits.acquire(need, again=state.attempts > 0)
        except asyncio.CancelledError:
            if (self.halted is None and not state.is_overdue) or self.stopped:
                raise
            task.uncancel()  # the worker goes on
            return None
        finally:
            self._patience.end(task)

    def _leave_unsent(self, rows: list[Row], state: RetryState, failed: EndpointError | None, latency_s: float) -> None:
        """Rows of a halted run: those that were sent before end with the error of their last attempt.

        That error is not final: had the run gone on, they would have been sent again.
        """
        for row in rows:
            row.attempts += state.attempts
            if failed is not None:
                failed.retryable = True
                self._on_finished(row, failed, round(latency_s * 1000))
                continue
            self._on_unsent(row, self.halted or "")

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

    def _after_failure(self, rows: list[Row], state: RetryState, error: EndpointError) -> float | None:
        """Counts a failed attempt; the seconds to wait before the next one, or `None` for no further one."""
        self._tally.throttled += isinstance(error, Throttled)
        self._tally.ambiguous += isinstance(error, Ambiguous)
        if isinstance(error, JobRejected):
            error.attempts = state.attempts
            raise error
        if len(rows) == 1:
            rows[0].bill(error.usage)
        return wait_before_retry(self._policy, state, error, self._clock.now(), self._random)

    async def _give_up(self, rows: list[Row], state: RetryState, error: EndpointError, latency_ms: int | None) -> None:
        if isinstance(error, RowRejected) and len(rows) > 1:
            # One bad text refuses the whole pack: halve it until that text stands alone.
            for row in rows:
                row.attempts += state.attempts
            middle = len(rows) // 2
            error.usage = None  # of the whole pack, not of each row
            await self.ask(rows[:middle], error)
            await self.ask(rows[middle:], error)
            return
        if error.kind in UNREACHABLE and not self._answered_once:
            raise JobRejected(
                f"{error.message} Tried {state.attempts} times, and nothing was ever answered, so the job stops.",
                kind="unreachable",
                attempts=state.attempts,
            )
        for row in rows:
            row.attempts += state.attempts
            self._on_finished(row, error, latency_ms)


def _ending(failed: EndpointError) -> Ending:
    if isinstance(failed, Throttled):
        return Ending.THROTTLED
    return Ending.FAILED if failed.status is None else Ending.ACCEPTED

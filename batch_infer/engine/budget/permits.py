"""Owns a task's side of a shared budget: who waits, and who is admitted. Does not carry messages.

window ──acquire, settle──▶ TaskPermits ──standing──▶ engine.pool
                                          ◀──grant────

On workers.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections import deque
from collections.abc import Callable

from batch_infer.contract.limits import Amount, Grant, Limits, Standing
from batch_infer.engine.budget.account import Account, Recent
from batch_infer.engine.budget.dimensions import DIMENSIONS, REQUESTS, TOKENS, ZERO, Vector, amount, vector, zeros
from batch_infer.engine.budget.fitting import too_large, within
from batch_infer.engine.ports import Clock, Ending, Permit

IN_FLIGHT_PER_TASK = 256
"""Requests that wait or are in flight in one task, at first, when the endpoint sets no `max_concurrency`."""
MOST_IN_FLIGHT_PER_TASK = 2048
"""The most that it grows to: each holds a row in memory."""
SHORTEST_SLEEP_S = 0.001
"""Shortest timer, in seconds. A rounding remainder could be too small to advance the clock, and the timer would
spin."""
REOPENING_SPREAD = 0.1
"""After a `Retry-After`, tasks come back over so much of it, not as a herd."""
EARLIEST_SHARE = 0.25
"""Share of the refresh time that a task which has run dry waits before it asks again."""
LIKELY = 1.5
"""A task wants this multiple of its recent use in hand for the coming refresh."""


class _Waiter:
    """One request in `acquire`."""

    __slots__ = ("again", "future", "need", "since", "vector")

    def __init__(
        self, need: Amount, need_vector: Vector, since: float, future: asyncio.Future[int], *, again: bool
    ) -> None:
        self.again = again
        self.need = need
        self.vector = need_vector
        self.since = since
        self.future = future


class TaskPermits:
    """A task's side of a shared budget: it may use what `take` brings. No I/O.

    Contract: requests are admitted in their order, repeated ones first, but one that is too large for what is there
    lets smaller ones pass while half of what comes in is saved for it. Nothing is admitted before the first grant, nor
    `Grant.valid_s` after the last one, nor for a moment after the first throttle of an epoch: throttles come quickly,
    and each would be followed by the next until the pool's answer is there. All methods belong to the event loop,
    except `standing` and `is_void`.

    Args:
        limits: The endpoint's configured limits, for the whole cluster.
        clock: Time.
        random: Uniform in [0, 1); spreads what returns after a `Retry-After`.
        hurry: Called when the task runs dry, was throttled, or first begins to wait: whoever carries messages should
            come early. May be called often, from the event loop.
    """

    def __init__(self, limits: Limits, clock: Clock, random: Callable[[], float], hurry: Callable[[], None]) -> None:
        self._limits = limits
        self._clock = clock
        self._random = random
        self._hurry = hurry
        self._lock = threading.Lock()  # the reporter's thread reads and returns; all else is the event loop's
        self._lease = Account()
        self._queue: deque[_Waiter] = deque()
        self._waiting = zeros()
        self._least: list[float] | None = None  # of a queue that was searched in vain: what nobody in it needs less of
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0

        self._may_fly = 0
        self._in_flight = 0
        self._epoch = 0
        self._refresh_s = Grant().refresh_s
        self._taken_at = -math.inf
        self._valid_until = -math.inf
        self._closed_until = -math.inf
        self._asked_until = -math.inf  # what the endpoint asked of this task; only that is passed on, or it would echo
        self._jitter = 0.0
        self._held_until = -math.inf  # after a throttle, for the news of what the pool makes of it
        self._admitted_since_take = True
        self._hurried_at = -math.inf

        self._accepted = 0
        self._latency_s = 0.0
        self._output_tokens = 0
        self._throttled = 0
        self._throttle_epoch = 0
        self._throttled_in_epoch = 0
        self._seen: Limits | None = None
        self._recent = Recent()
        self._standings = 0

    @property
    def max_in_flight(self) -> int:
        """See `Permits.max_in_flight`. Without `max_concurrency` it grows with what is granted."""
        if self._limits.max_concurrency is not None:
            return max(1, int(self._limits.max_concurrency))
        return max(IN_FLIGHT_PER_TASK, min(MOST_IN_FLIGHT_PER_TASK, 2 * self._may_fly))

    async def acquire(self, need: Amount, *, again: bool = False) -> Permit:
        """See `Permits.acquire`."""
        if self._seen is not None:
            need = within(need, self._seen)
        need_vector = vector(need)
        self._refuse_what_never_fits(need_vector)
        now = self._clock.now()
        with self._lock:
            if not self._queue and self._opens_at(now) <= now and self._lease.fits(need_vector):
                self._admit(need_vector, now)
                return Permit(need, self._epoch, 0.0)
            waiter = _Waiter(need, need_vector, now, asyncio.get_running_loop().create_future(), again=again)
            self._enter(waiter)
            for d in DIMENSIONS:
                self._waiting[d] += need_vector[d]
            self._least = None
            self._pump(now)
        if not waiter.future.done():
            self._ask_early(now, begins=len(self._queue) == 1)
        try:
            epoch = await waiter.future
        except BaseException:
            self._abandon(waiter)
            raise
        return Permit(waiter.need, epoch, max(0.0, self._clock.now() - waiter.since))

    def _enter(self, waiter: _Waiter) -> None:
        if not waiter.again:
            self._queue.append(waiter)
            return
        ahead = next((i for i, other in enumerate(self._queue) if not other.again), len(self._queue))
        self._queue.insert(ahead, waiter)

    def _abandon(self, waiter: _Waiter) -> None:
        with self._lock:
            if waiter in self._queue:
                self._remove(self._queue.index(waiter))
            elif waiter.future.done() and not waiter.future.cancelled() and waiter.future.exception() is None:
                self._in_flight -= 1  # admitted and cancelled in the same moment
                self._lease.correct(waiter.vector, ZERO, self._saving_for())
            self._pump(self._clock.now())

    def settle(
        self,
        permit: Permit,
        ending: Ending,
        *,
        used: Amount | None = None,
        latency_s: float = 0.0,
        retry_after_s: float | None = None,
        seen: Limits | None = None,
    ) -> None:
        """See `Permits.settle`."""
        now = self._clock.now()
        early = False
        with self._lock:
            self._in_flight -= 1
            self._correct(permit.need, ending, used)
            if ending is Ending.ACCEPTED:
                self._accepted += 1
                self._latency_s += latency_s
                self._output_tokens += int(used.output_tokens) if used is not None else 0
            elif ending is Ending.THROTTLED:
                early = self._count_throttle(permit.epoch)
                if early:
                    self._held_until = now + self._refresh_s
            if retry_after_s is not None and retry_after_s > 0:
                self._asked_until = max(self._asked_until, now + retry_after_s)
                self._close(now, retry_after_s)
                early = True
            if seen is not None and seen != self._seen:
                self._seen = seen
                self._reject_what_never_fits()
                early = True
            if self._queue:
                self._pump(now)
            elif self._in_flight == self._may_fly and not self._may_fly:
                early = True  # its slot was taken away, and is free for another now
        if early:
            self._hurry()
        elif self._queue:
            self._ask_early(now)

    def standing(self) -> Standing:
        """What the next message says. Declares as returned what is not needed. Thread-safe."""
        now = self._clock.now()
        with self._lock:
            lease = self._lease
            self._recent.note(lease.spent, now)
            wanted = self._wanted()
            lease.hand_back(wanted if now < self._valid_until else ZERO)
            smallest = min(self._queue, key=lambda waiter: waiter.vector[TOKENS]).need if self._queue else Amount()
            still_asked_s = self._asked_until - now
            self._standings += 1
            return Standing(
                number=self._standings,
                spent=amount(lease.spent),
                waiting=amount(self._waiting) if self._queue else Amount(),
                wanted=amount(wanted),
                smallest=smallest,
                returned=lease.returned,
                in_flight=self._in_flight,
                accepted=self._accepted,
                latency_s=self._latency_s,
                output_tokens=self._output_tokens,
                throttled=self._throttled,
                epoch=self._throttle_epoch,
                throttled_in_epoch=self._throttled_in_epoch,
                retry_after_s=still_asked_s if still_asked_s > 0 else None,
                seen=self._seen,
            )

    def take(self, grant: Grant) -> None:
        """Takes the answer to a standing. On the event loop."""
        now = self._clock.now()
        with self._lock:
            self._lease.take(grant, now, self._saving_for())
            self._may_fly = grant.max_in_flight
            if grant.epoch > self._epoch:
                self._epoch = grant.epoch
                self._held_until = -math.inf
            self._refresh_s = grant.refresh_s
            self._taken_at = now
            self._valid_until = now + grant.valid_s
            self._admitted_since_take = False
            if grant.closed_s > 0:
                self._close(now, grant.closed_s)
            self._least = None
            self._pump(now)

    def is_void(self) -> bool:
        """Whether nothing is admitted because no grant came for `Grant.valid_s`, or none yet. Thread-safe."""
        return self._clock.now() >= self._valid_until

    # Admission; under the lock

    def _opens_at(self, now: float) -> float:
        """The time until which nobody is admitted, whatever it needs; infinite: until something happens."""
        if self._in_flight >= self._may_fly or now >= self._valid_until:
            return math.inf
        paced = self._lease.opens_at if self._lease.limited else -math.inf
        return max(self._closed_until, self._held_until, paced)

    def _admit(self, need: Vector, now: float) -> None:
        self._lease.spend(need, now)
        self._in_flight += 1
        self._admitted_since_take = True

    def _pump(self, now: float) -> None:
        """Admits who may go, and sets the timer for the next one."""
        while self._queue:
            opens_at = self._opens_at(now)
            if opens_at > now:
                self._wake_at(opens_at)
                return
            index = self._next()
            if index is None:
                return
            waiter = self._queue[index]
            self._remove(index)
            if waiter.future.done():
                continue  # cancelled, and about to find out
            self._admit(waiter.vector, now)
            waiter.future.set_result(self._epoch)

    def _next(self) -> int | None:
        """Whose turn it is, among those that fit."""
        lease, queue = self._lease, self._queue
        if lease.fits(queue[0].vector):
            return 0
        if self._least is not None and not lease.fits((*self._least,), ahead=True):
            return None
        for index, waiter in enumerate(queue):
            if index and lease.fits(waiter.vector, ahead=True):
                return index
        self._least = [min(waiter.vector[d] for waiter in queue) for d in DIMENSIONS]
        return None

    def _remove(self, index: int) -> None:
        waiter = self._queue[index]
        del self._queue[index]
        for d in DIMENSIONS:
            self._waiting[d] -= waiter.vector[d]
        if index == 0:
            self._lease.end_saving()

    def _saving_for(self) -> Vector | None:
        """The oldest request, when it waits because it does not fit."""
        if not self._queue or self._lease.fits(self._queue[0].vector):
            return None
        return self._queue[0].vector

    def _wake_at(self, at: float) -> None:
        if at == math.inf or (self._timer is not None and self._timer_at <= at):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        delay = max(SHORTEST_SLEEP_S, at - self._clock.now())
        self._timer = asyncio.get_running_loop().call_later(delay, self._on_timer)

    def _on_timer(self) -> None:
        now = self._clock.now()
        with self._lock:
            self._timer = None
            self._pump(now)
        self._ask_early(now)

    # What the endpoint said; under the lock

    def _correct(self, need: Amount, ending: Ending, used: Amount | None) -> None:
        if used is None:
            if ending is not Ending.THROTTLED:
                return
            used = Amount()
        requests = used.requests if ending is Ending.CANCELLED else need.requests
        actual = (requests, used.input_tokens + used.output_tokens, used.input_tokens, used.output_tokens)
        self._lease.correct(vector(need), actual, self._saving_for())

    def _count_throttle(self, epoch: int) -> bool:
        """Whether it is the first of its epoch."""
        self._throttled += 1
        if epoch > self._throttle_epoch or not self._throttled_in_epoch:
            self._throttle_epoch = max(epoch, self._throttle_epoch)
            self._throttled_in_epoch = 0
        if epoch < self._throttle_epoch:
            return False
        self._throttled_in_epoch += 1
        return self._throttled_in_epoch == 1

    def _close(self, now: float, seconds: float) -> None:
        if self._closed_until <= now:
            self._jitter = REOPENING_SPREAD * self._random() * seconds
        self._closed_until = max(self._closed_until, now + seconds + self._jitter)

    def _refuse_what_never_fits(self, need: Vector) -> None:
        refusal = too_large(need, self._limits) or (too_large(need, self._seen) if self._seen else None)
        if refusal is not None:
            raise refusal

    def _reject_what_never_fits(self) -> None:
        self._least = None
        for index in range(len(self._queue) - 1, -1, -1):
            waiter = self._queue[index]
            if self._seen is not None:
                before, waiter.need = waiter.vector, within(waiter.need, self._seen)
                waiter.vector = vector(waiter.need)
                for d in DIMENSIONS:
                    self._waiting[d] += waiter.vector[d] - before[d]
            refusal = too_large(waiter.vector, self._seen) if self._seen else None
            if refusal is not None:
                self._remove(index)
                if not waiter.future.done():
                    waiter.future.set_exception(refusal)

    # What to say; under the lock, or on the event loop

    def _wanted(self) -> Vector:
        """For the coming refresh: what waits, as far as slots allow; and what recent use makes likely."""
        likely = [LIKELY * rate * self._refresh_s for rate in self._recent.per_second]
        waiting = len(self._queue)
        if not waiting:
            return tuple(likely) if likely[REQUESTS] >= 0.5 else ZERO
        slots = max(0, self._may_fly - self._in_flight) + 2 * self._recent.per_second[REQUESTS] * self._refresh_s + 1
        share = min(1.0, slots / waiting)
        head = self._queue[0].vector
        return tuple([max(share * self._waiting[d], likely[d], head[d]) for d in DIMENSIONS])

    def _ask_early(self, now: float, *, begins: bool = False) -> None:
        """Hurries when the task waits for a grant: at first, and when it has used one up; not again and again."""
        if not self._queue:
            return
        dry = self._lease.limited and self._admitted_since_take and not self._lease.fits(self._queue[0].vector)
        without_slot = begins and self._may_fly == 0
        pause = self._refresh_s * EARLIEST_SHARE
        if (dry or without_slot) and now - max(self._taken_at, self._hurried_at) >= pause:
            self._hurried_at = now
            self._admitted_since_take = False
            self._hurry()

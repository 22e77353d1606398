"""Endpoints, tasks and messages in virtual time: real `TaskPermits` and a real `Pool`, everything else simulated."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from collections import deque
from dataclasses import dataclass, field

from batch_infer.contract.limits import Amount, Limits
from batch_infer.engine.budget.permits import TaskPermits
from batch_infer.engine.budget.pool import Pool
from batch_infer.engine.ports import Ending
from batch_infer.engine.token_estimates import OutputEstimate
from tests.support.virtual_clock import VirtualClock, run_virtually

MESSAGE_S = 0.005
"""One way of a message between a task and the pool."""
HURRY_S = 0.05
"""A task that hurries reports no more often."""
IDLE_S = 1.0
"""Between reports of a task that neither waits nor has anything in flight."""


@dataclass
class Reply:
    is_throttle: bool
    output_tokens: int = 0
    retry_after_s: float | None = None


@dataclass
class Row:
    input_tokens: int = 1
    output_tokens: int = 1
    max_tokens: int = 1


class Latency:
    """Log-normal with a given mean; sigma 0 is a constant."""

    def __init__(self, mean_s, sigma=0.0, seed=1):
        self._sigma = sigma
        self._mu = math.log(mean_s) - sigma * sigma / 2
        self._random = random.Random(seed)

    def __call__(self):
        return math.exp(self._random.gauss(self._mu, self._sigma)) if self._sigma else math.exp(self._mu)


class Server:
    """What all simulated endpoints count."""

    def __init__(self, latency):
        self.latency = latency
        self.arrivals = []
        self.accepted = []
        self.in_flight = []
        self.throttled = 0
        self.tokens = 0
        self._open = 0

    async def call(self, row):
        now = asyncio.get_running_loop().time()
        self.arrivals.append(now)
        self._open += 1
        self.in_flight.append((now, self._open))
        try:
            reply = await self.answer(row, now)
        finally:
            self._open -= 1
        if reply.is_throttle:
            self.throttled += 1
        else:
            self.accepted.append(now)
            self.tokens += row.input_tokens + row.output_tokens
        return reply

    async def refuse(self, retry_after_s=None):
        await asyncio.sleep(0.01)
        return Reply(True, retry_after_s=retry_after_s)

    def most_in_flight(self, since=0.0):
        return max(count for at, count in self.in_flight if at >= since)

    def busiest(self, window_s, times=None):
        """The most requests that arrived in any such window."""
        times = self.arrivals if times is None else times
        most, first = 0, 0
        for last, at in enumerate(times):
            while times[first] <= at - window_s:
                first += 1
            most = max(most, last - first + 1)
        return most


class Rated(Server):
    """A rate bucket. `rate(now)` is requests per second."""

    def __init__(self, latency, rate, burst, retry_after=False):
        super().__init__(latency)
        self._rate = rate if callable(rate) else lambda _now: rate
        self._burst = self._level = burst
        self._at = 0.0
        self._retry_after = retry_after

    async def answer(self, row, now):
        rate = self._rate(now)
        self._level = min(self._burst, self._level + (now - self._at) * rate)
        self._at = now
        if self._level < 1:
            return await self.refuse((1 - self._level) / rate if self._retry_after else None)
        self._level -= 1
        await asyncio.sleep(self.latency())
        return Reply(False, row.output_tokens)


class TokenRated(Server):
    """As Databricks: input and max_tokens are reserved at admission, what was not used is credited back."""

    def __init__(self, latency, tokens_per_minute, burst_tokens):
        super().__init__(latency)
        self._rate = tokens_per_minute / 60
        self._burst = self._level = burst_tokens
        self._at = 0.0

    def _refill(self):
        now = asyncio.get_running_loop().time()
        self._level = min(self._burst, self._level + (now - self._at) * self._rate)
        self._at = now

    async def answer(self, row, now):
        self._refill()
        reserved = row.input_tokens + row.max_tokens
        if self._level < reserved:
            return await self.refuse((reserved - self._level) / self._rate)
        self._level -= reserved
        await asyncio.sleep(self.latency())
        self._refill()
        self._level = min(self._burst, self._level + row.max_tokens - row.output_tokens)
        return Reply(False, row.output_tokens)


class Slotted(Server):
    """Slots with a queue; `queue` None: without end. `slots` may be changed while it runs."""

    def __init__(self, latency, slots, queue=None):
        super().__init__(latency)
        self.slots = slots
        self.queue = queue
        self._busy = 0
        self._queued = deque()

    async def answer(self, row, now):
        if self._busy >= self.slots:
            if self.queue is not None and len(self._queued) >= self.queue:
                return await self.refuse()
            turn = asyncio.get_running_loop().create_future()
            self._queued.append(turn)
            await turn
        self._busy += 1
        try:
            await asyncio.sleep(self.latency())
        finally:
            self._busy -= 1
            free = self.slots - self._busy
            while free > 0 and self._queued:
                turn = self._queued.popleft()
                if not turn.done():
                    turn.set_result(None)
                    free -= 1
        return Reply(False, row.output_tokens)


@dataclass
class Task:
    """One simulated task attempt: its rows, when it starts, when it is killed."""

    rows: list
    starts_at: float = 0.0
    killed_at: float = math.inf
    name: str = "task"
    done_at: float | None = None
    sent: list = field(default_factory=list)
    permits: TaskPermits | None = None


class World:
    """Tasks that share one pool and call one endpoint. `slots`: tasks that run at the same time."""

    def __init__(self, server, tasks, *, limits=None, slots=2, seed=7, until=None):
        self.server = server
        self.tasks = tasks
        self.limits = limits or Limits()
        self.slots = slots
        self.until = until
        self.random = random.Random(seed)
        self.clock = VirtualClock()
        self.pool = None
        self.also = None
        """A coroutine function that runs beside the tasks."""
        self.ended_at = None

    def run(self):
        run_virtually(self._run())
        return self

    async def _run(self):
        self.pool = Pool(self.limits, self.clock.now(), self.random.random)
        slots = asyncio.Semaphore(self.slots)
        expiry = asyncio.ensure_future(self._expire())
        running = [asyncio.ensure_future(self._task(task, slots)) for task in self.tasks]
        also = [asyncio.ensure_future(self.also())] if self.also else []
        await asyncio.wait(running, timeout=self.until)
        self.ended_at = self.clock.now()
        for one in (*running, *also, expiry):
            one.cancel()
        results = await asyncio.gather(*running, return_exceptions=True)
        for error in results:
            if isinstance(error, Exception):
                raise error

    async def _expire(self):
        while True:
            await asyncio.sleep(0.5)
            self.pool.expire(self.clock.now())

    async def _task(self, task, slots):
        await asyncio.sleep(task.starts_at)
        async with slots:
            hurried = asyncio.Event()
            task.permits = permits = TaskPermits(self.limits, self.clock, self.random.random, hurried.set)
            waiting = deque(task.rows)
            estimate = OutputEstimate(max((row.max_tokens for row in task.rows), default=1))
            reporter = asyncio.ensure_future(self._report(task, hurried))
            workers = set()

            async def work():
                while waiting:
                    row = waiting.popleft()
                    await self._row(task, permits, row, estimate)

            try:
                while waiting or workers:
                    for _ in range(min(len(waiting), permits.max_in_flight - len(workers))):
                        workers.add(asyncio.ensure_future(work()))
                    left = max(0.0, task.killed_at - self.clock.now())
                    done, workers = await asyncio.wait(
                        workers, timeout=min(1.0, left), return_when=asyncio.FIRST_COMPLETED
                    )
                    for one in done:
                        one.result()
                    if self.clock.now() >= task.killed_at or reporter.done():
                        return
                task.done_at = self.clock.now()
                self.pool.leave(task.name, self.clock.now(), permits.standing())
            finally:
                reporter.cancel()
                for one in workers:
                    one.cancel()
                ended = await asyncio.gather(reporter, *workers, return_exceptions=True)
                for error in ended:
                    if isinstance(error, Exception):
                        raise error

    async def _row(self, task, permits, row, estimate):
        while True:
            permit = await permits.acquire(Amount(1, row.input_tokens, estimate.tokens))
            sent_at = self.clock.now()
            task.sent.append(sent_at)
            reply = await self.server.call(row)
            if not reply.is_throttle:
                estimate.learn(reply.output_tokens)
                permits.settle(
                    permit,
                    Ending.ACCEPTED,
                    used=Amount(1, row.input_tokens, reply.output_tokens),
                    latency_s=self.clock.now() - sent_at,
                )
                return
            permits.settle(permit, Ending.THROTTLED, retry_after_s=reply.retry_after_s)

    async def _report(self, task, hurried):
        permits = task.permits
        while True:
            standing = permits.standing()
            await asyncio.sleep(MESSAGE_S)
            grant = self.pool.exchange(task.name, standing, self.clock.now())
            await asyncio.sleep(MESSAGE_S)
            permits.take(grant)
            busy = standing.in_flight or standing.waiting.requests
            await asyncio.sleep(HURRY_S)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(hurried.wait(), (grant.refresh_s if busy else IDLE_S) - HURRY_S)
            hurried.clear()

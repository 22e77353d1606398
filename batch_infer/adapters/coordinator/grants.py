"""Owns where a task's grants come from: the driver, or a share of its own while the driver does not answer.

Never both: a task asks the driver as long as a grant of the driver is good, and goes back to it with the next one. Its
own share is limit ÷ task slots, so the sum over all tasks stays within the limits whoever can reach the driver.

On workers.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable

from batch_infer.contract.endpoint import Endpoint
from batch_infer.contract.limits import Grant
from batch_infer.contract.say_once import SayOnce
from batch_infer.engine.budget.permits import TaskPermits
from batch_infer.engine.budget.pool import Pool
from batch_infer.engine.ports import Clock
from batch_infer.engine.tally import Tally

OWN_SHARE_INTERVAL_S = 0.1
"""Seconds between a task's grants to itself, while the driver does not answer."""
FIRST_ANSWER_S = 5.0
"""A driver that answered when the task began has so long to answer again once it is open: opening it may have taken
longer than the first grant was good (a model server that starts, a secret that is fetched)."""

_log = logging.getLogger(__name__)
said = SayOnce(_log)
"""What this process has said of endpoints without grants."""


class Grants:
    """One task attempt's permits, and what keeps them supplied.

    Args:
        endpoint: Whose limits.
        slots: Tasks that can run at the same time in the whole cluster.
        clock: Time.
        loop: The event loop that sends.
        tally: `unleased_tasks` becomes 1 when the task has had to keep to a share of its own.

    Attributes:
        permits: What the window asks.
        come_early: Has the task report early to the driver. Called on the loop; must not block.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        slots: int,
        clock: Clock,
        loop: asyncio.AbstractEventLoop,
        tally: Tally,
    ) -> None:
        self.come_early: Callable[[], None] = lambda: None
        self.permits = TaskPermits(endpoint.limits, clock, random.random, self._come_early)
        self._endpoint = endpoint
        self._slots = max(1, slots)
        self._clock = clock
        self._loop = loop
        self._tally = tally
        self._leased_until = 0.0
        self._own: Pool | None = None

    def _come_early(self) -> None:
        self.come_early()

    def take(self, grant: Grant) -> None:
        """Takes a grant of the driver. From any thread."""
        self._loop.call_soon_threadsafe(self._take, grant)

    def _take(self, grant: Grant) -> None:
        self._own = None
        self._leased_until = self._clock.now() + grant.valid_s
        self.permits.take(grant)

    async def keep(self) -> None:
        """Grants the task a share of its own whenever there is no good grant of the driver. Runs until cancelled."""
        if self._leased_until:
            self._leased_until = max(self._leased_until, self._clock.now() + FIRST_ANSWER_S)
        while True:
            now = self._clock.now()
            if now < self._leased_until:
                await self._clock.sleep(self._leased_until - now)
                continue
            if self._own is None:
                self._own = Pool(self._endpoint.limits, now, random.random, share=1 / self._slots)
                self._tally.unleased_tasks = 1
                self._say()
            self.permits.take(self._own.exchange("this task", self.permits.standing(), now))
            await self._clock.sleep(OWN_SHARE_INTERVAL_S)

    def _say(self) -> None:
        name = self._endpoint.name
        said.warning(
            name,
            "Endpoint %r: the driver grants this worker nothing, so its tasks keep to a share of their own: the "
            "endpoint's limits divided by %d task slots. They go back to the shared budget when the driver answers. "
            "Said once.",
            name,
            self._slots,
        )

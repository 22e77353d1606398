"""Owns one endpoint's pool on the driver: its lock and its clock. Does not decide who gets what: the pool does.

All calls of all sessions that speak to the same endpoint share one `Budget`, because the endpoint counts them together.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Hashable
from functools import reduce

from batch_infer.contract.limits import Grant, Limits, Standing
from batch_infer.engine.budget.dimensions import tighter
from batch_infer.engine.budget.pool import Pool, PoolState

EXPIRY_INTERVAL_S = 0.5
"""Silent members are looked for at most this often."""


class Budget:
    """A `Pool` for several threads: the service's network thread grants, displays look on.

    Args:
        limits: The user's own, for the whole cluster.
        clock: Monotonic seconds.
        random: Uniform in [0, 1).
    """

    def __init__(
        self,
        limits: Limits,
        *,
        clock: Callable[[], float] = time.monotonic,
        random: Callable[[], float] = random.random,
    ) -> None:
        self.limits = limits
        self._by_name: dict[str, Limits] = {}
        self._clock = clock
        self._random = random
        self._lock = threading.Lock()
        self._pool = Pool(limits, clock(), random)
        self._next_expiry = 0.0

    def allow(self, limits: Limits, name: str = "") -> None:
        """Takes the user's limits as they are now, under one name of the endpoint; of several names the tightest bind.

        Other ones than before begin a pool anew; its members join again.
        """
        with self._lock:
            self._by_name[name] = limits
            limits = reduce(tighter, self._by_name.values())
            if limits != self.limits:
                self.limits = limits
                self._pool = Pool(limits, self._clock(), self._random)

    def exchange(self, member: Hashable, standing: Standing) -> Grant:
        """Takes where a task attempt stands; gives what it may use. Never blocks for long."""
        with self._lock:
            now = self._clock()
            if now >= self._next_expiry:
                self._next_expiry = now + EXPIRY_INTERVAL_S
                self._pool.expire(now)
            return self._pool.exchange(member, standing, now)

    def leave(self, member: Hashable, standing: Standing | None = None) -> None:
        """A task attempt is done (`standing`: its last), or gone. Unknown members may leave too."""
        with self._lock:
            self._pool.leave(member, self._clock(), standing)

    def state(self) -> PoolState:
        """What binds at this moment."""
        with self._lock:
            return self._pool.state(self._clock())

"""Owns the looking after a running job: tells its progress, notes what binds it, ends it early. Draws nothing.

On the driver.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Self

from batch_infer.adapters.coordinator.call import Call
from batch_infer.contract.progress import Counters
from batch_infer.engine.budget.pool import PoolState
from batch_infer.engine.early_stop import EarlyStop

LOOK_INTERVAL_S = 0.5
"""Seconds between two looks at a running call."""
BOUND_FROM = 0.25
"""Part of the looks at which a limit must bind to be worth a word. Tasks that begin or end wait for none."""

OnProgress = Callable[[Counters, float, str | None], None]
"""Takes the totals so far, the seconds since the start, and in words what binds; twice a second, on one thread."""


class Monitor:
    """Looks at a call twice a second while the block runs, and once at its end.

    Args:
        call: What runs.
        endpoint: What the call asks, by its name.
        early_stop: When to have it send nothing further.
        on_progress: Told the totals. `None`: nobody is.
        started: On `time.monotonic`'s clock.

    Attributes:
        stopped_early: Why the call was told to send nothing further ("because …"); `None`: it was not.
    """

    def __init__(
        self, call: Call, endpoint: str, early_stop: EarlyStop, on_progress: OnProgress | None, started: float
    ) -> None:
        self.call = call
        self.stopped_early: str | None = None
        self._endpoint = endpoint
        self._early_stop = early_stop
        self._on_progress = on_progress
        self._started = started
        self._bound: Counter[str] = Counter()
        self._words: dict[str, str] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="batch_infer-monitor", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._over.set()
        self._thread.join(timeout=2)

    @property
    def bound_by(self) -> str | None:
        """The limit that bound most often, for a good part of the time, in words; `None`: none did."""
        limits = [(count, kind) for kind, count in self._bound.items() if kind]
        count, kind = max(limits, default=(0, ""))
        return self._words[kind] if count > BOUND_FROM * self._bound.total() else None

    def _run(self) -> None:
        is_last = False
        while not is_last:
            is_last = self._over.wait(LOOK_INTERVAL_S)
            totals = self.call.progress().totals()
            bound_by = None
            if not is_last and totals.requests:
                bound_by = self._note(self.call.limits())
            reason = self._early_stop.reason(totals)
            if reason is not None and self.stopped_early is None:
                self.stopped_early = reason
                self.call.halt(f"not sent: the run was stopped early, {reason}. Run it again to send this request.")
            if self._on_progress is not None:
                seconds = time.monotonic() - self._started
                self._on_progress(totals, seconds, bound_by)

    def _note(self, state: PoolState | None) -> str | None:
        limit = state.bound_by if state is not None else None
        kind = limit.partition(" (")[0] if limit is not None else ""
        self._bound[kind] += 1
        if state is None or limit is None:
            return None
        others = [f"{share:.0%} of {name} used" for name, share in state.used.items() if name != kind]
        words = f"{limit} of endpoint {self._endpoint!r}" + (f" ({', '.join(others)})" if others else "")
        self._words[kind] = words
        return words

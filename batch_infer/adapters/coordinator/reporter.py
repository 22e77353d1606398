"""Owns the heartbeat of one running task attempt. Does not talk to the network itself: that is `client`.

A heartbeat carries two things: how far the task is, and where it stands with the endpoint's budget. Its answer says
whether to go on, and what the task may use until the next one. So the heart beats slowly where nothing waits, as often
as grants are meant to last where something does, and at once when `hurry` asks for it.

On workers.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from batch_infer.adapters.coordinator.client import DriverClient
from batch_infer.adapters.coordinator.protocol import Directive
from batch_infer.contract.limits import Grant, Standing
from batch_infer.contract.progress import Counters, TaskId

HEARTBEAT_INTERVAL_S = 1.0
"""Seconds between heartbeats where nothing waits for a grant."""
HURRY_INTERVAL_S = 0.05
"""Hurried heartbeats keep this distance; a fifth of the grants' refresh time where that is longer (many tasks)."""
URGENT_TIMEOUT_S = 2.0
"""Seconds that a fatal or a last report may cost the caller of `fatal` or `close`."""

_log = logging.getLogger(__name__)


class Reporter:
    """Reports a task attempt's counters to the driver until closed, and passes on the driver's "stop".

    Contract: a daemon thread reports at once and then every `interval_s`; more often while requests wait or are in
    flight under grants. `on_stop` and `on_halt` are called on that thread, once, with the reason. Nothing that goes
    wrong here stops the task: an unreachable driver is the client's to mention, and failing callables are logged.
    `close` sends one last report; a worker killed before that is noticed by the service when its connection breaks.

    Args:
        client: The process's client.
        call: The call's id.
        task: The attempt that reports.
        counters: Gives the cumulative counters; called on the reporter's thread.
        on_stop: Takes the reason to stop.
        on_halt: Takes the reason to send nothing further.
        standing: Gives where the task stands with the endpoint's budget; called on the reporter's thread.
        on_grant: Takes every grant.
        interval_s: Seconds between heartbeats.
    """

    def __init__(
        self,
        client: DriverClient,
        call: str,
        task: TaskId,
        counters: Callable[[], Counters],
        on_stop: Callable[[str], None],
        *,
        on_halt: Callable[[str], None] | None = None,
        standing: Callable[[], Standing] | None = None,
        on_grant: Callable[[Grant], None] | None = None,
        interval_s: float = HEARTBEAT_INTERVAL_S,
    ) -> None:
        self._client = client
        self._call = call
        self._task = task
        self._counters = counters
        self._on_stop = on_stop
        self._on_halt = on_halt
        self._standing = standing
        self._on_grant = on_grant
        self._interval_s = interval_s
        self._pause_s = interval_s
        self._hurry_s = HURRY_INTERVAL_S
        self._beat_at = 0.0
        self._latest = Counters()
        self._said: set[str] = set()
        self._passed_on: set[Callable[[str], None]] = set()
        self._fatal: str | None = None
        self._fatal_delivered = False
        self._fatal_tried = threading.Event()
        self._closing = threading.Event()
        self._wake = threading.Event()
        self._urgent = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"batch-infer-reporter-{call}", daemon=True)

    def start(self) -> Self:
        """Begins to report. Once only."""
        self._thread.start()
        return self

    def hurry(self) -> None:
        """Has the next heartbeat come early. From any thread; does not block."""
        self._wake.set()

    def fatal(self, message: str) -> bool:
        """Publishes, at once, that no row of the call can succeed: every other task of it is told to stop.

        Contract: returns when the driver has it, when it could not be reached, or after `URGENT_TIMEOUT_S`. The first
        message stays, and goes out again with every heartbeat until the driver has it. `on_stop` is not called for it:
        the caller knows.

        Returns:
            Whether the driver has taken it.
        """
        if self._fatal is None:
            self._fatal = message
        self._wake_urgently()
        self._fatal_tried.wait(URGENT_TIMEOUT_S)
        return self._fatal_delivered

    def close(self, timeout_s: float = URGENT_TIMEOUT_S) -> None:
        """Sends the last report (`finished`) and ends. Idempotent; waits `timeout_s` at most, come what may."""
        self._closing.set()
        self._wake_urgently()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(timeout_s)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self) -> None:
        while True:
            closing = self._closing.is_set()
            fatal = None if self._fatal_delivered else self._fatal
            self._beat(finished=closing, fatal=fatal)
            if closing:
                self._fatal_tried.set()
                return
            self._pause()

    def _wake_urgently(self) -> None:
        self._urgent.set()
        self._wake.set()

    def _pause(self) -> None:
        if self._wake.wait(self._pause_s):
            self._urgent.wait(max(0.0, self._beat_at + self._hurry_s - time.monotonic()))
        self._urgent.clear()
        self._wake.clear()

    def _beat(self, *, finished: bool, fatal: str | None) -> None:
        self._beat_at = time.monotonic()
        standing = self._stands()
        directive = self._client.report(
            self._call,
            self._task,
            self._counted(),
            finished=finished,
            fatal=fatal,
            standing=standing,
            timeout_s=URGENT_TIMEOUT_S if finished or fatal is not None else None,
        )
        if fatal is not None:
            self._fatal_delivered = directive is not None
            self._fatal_tried.set()
        self._pause_s = self._interval_s
        if directive is None:
            return
        grant = directive.grant
        if grant is not None and standing is not None:
            self._hurry_s = max(HURRY_INTERVAL_S, grant.refresh_s / 5)
            if standing.in_flight or standing.waiting.requests:
                self._pause_s = grant.refresh_s
        if finished or self._fatal is not None:
            return  # it stops already
        self._pass_on(directive)

    def _pass_on(self, directive: Directive) -> None:
        try:
            if directive.grant is not None and self._on_grant is not None:
                self._on_grant(directive.grant)
            for reason, tell in ((directive.stop, self._on_stop), (directive.halt, self._on_halt)):
                if reason is not None and tell is not None and tell not in self._passed_on:
                    self._passed_on.add(tell)
                    tell(reason)
        except Exception:  # noqa: BLE001 - the heartbeat goes on
            _log.exception("A task could not be told what the driver answered.")

    def _counted(self) -> Counters:
        try:
            self._latest = self._counters()
        except Exception:  # noqa: BLE001 - the heartbeat goes on
            self._say_once("A task's counters cannot be read; its progress stands still. Said once.")
        return self._latest

    def _stands(self) -> Standing | None:
        try:
            return self._standing() if self._standing is not None else None
        except Exception:  # noqa: BLE001 - the heartbeat goes on; without grants the task keeps to its own share
            self._say_once("A task's standing cannot be read; it asks the driver for nothing. Said once.")
            return None

    def _say_once(self, what: str) -> None:
        if what not in self._said:
            self._said.add(what)
            _log.exception(what)

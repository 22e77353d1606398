"""Owns the heartbeat of one running task attempt. Does not talk to the network itself: that is `client`."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from types import TracebackType

from batch_infer.adapters.driver.client import DriverClient
from batch_infer.contract.progress import Counters, TaskId

HEARTBEAT_INTERVAL_S = 1.0
URGENT_TIMEOUT_S = 2.0
"""For a fatal or a last report: what `fatal` and `close` may cost their caller."""

_log = logging.getLogger(__name__)


class Reporter:
    """Reports a task attempt's counters to the driver until closed, and passes on the driver's "stop".

    Contract: a daemon thread reports at once and then every `interval_s`. `on_stop` is called on that thread, once,
    with the reason. Nothing that goes wrong here stops the task: an unreachable driver is the client's to mention,
    and failing callables are logged. `close` sends one last report; a worker killed before that is noticed by the
    service when its connection breaks.

    Args:
        client: The process's client.
        call: The call's id.
        task: The attempt that reports.
        counters: Gives the cumulative counters; called on the reporter's thread.
        on_stop: Takes the reason to stop.
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
        interval_s: float = HEARTBEAT_INTERVAL_S,
    ) -> None:
        self._client = client
        self._call = call
        self._task = task
        self._counters = counters
        self._on_stop = on_stop
        self._interval_s = interval_s
        self._latest = Counters()
        self._counters_failed = False
        self._stop_passed_on = False
        self._fatal: str | None = None
        self._fatal_delivered = False
        self._fatal_tried = threading.Event()
        self._closing = threading.Event()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"batch-infer-reporter-{call}", daemon=True)

    def start(self) -> Reporter:
        """Begins to report. Once only."""
        self._thread.start()
        return self

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
        self._wake.set()
        self._fatal_tried.wait(URGENT_TIMEOUT_S)
        return self._fatal_delivered

    def close(self, timeout_s: float = URGENT_TIMEOUT_S) -> None:
        """Sends the last report (`finished`) and ends. Idempotent; waits `timeout_s` at most, come what may."""
        self._closing.set()
        self._wake.set()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(timeout_s)

    def __enter__(self) -> Reporter:  # noqa: PYI034 - `Self` is not in Python 3.10
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
            self._wake.wait(self._interval_s)
            self._wake.clear()

    def _beat(self, *, finished: bool, fatal: str | None) -> None:
        directive = self._client.report(
            self._call,
            self._task,
            self._counted(),
            finished=finished,
            fatal=fatal,
            timeout_s=URGENT_TIMEOUT_S if finished or fatal is not None else None,
        )
        if fatal is not None:
            self._fatal_delivered = directive is not None
            self._fatal_tried.set()
        if directive is None or directive.stop is None:
            return
        if finished or self._fatal is not None or self._stop_passed_on:
            return  # it stops already
        self._stop_passed_on = True
        try:
            self._on_stop(directive.stop)
        except Exception:  # noqa: BLE001 - the heartbeat goes on
            _log.exception("A task could not be told to stop (%s).", directive.stop)

    def _counted(self) -> Counters:
        try:
            self._latest = self._counters()
        except Exception:  # noqa: BLE001 - the heartbeat goes on
            if not self._counters_failed:
                self._counters_failed = True
                _log.exception("A task's counters cannot be read; its progress stands still. Said once.")
        return self._latest

"""Owns what the driver knows about one call: its secrets' references, progress, whether it is to stop. No sockets.

Driver threads (displays, the Spark side) and the service's network thread both use a `Call`; one lock guards it, and
is never held while a hook or a callback runs.

On the driver.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection

from batch_infer.adapters.coordinator.budget import Budget
from batch_infer.adapters.coordinator.protocol import Directive, Report, fitting
from batch_infer.contract.limits import Grant
from batch_infer.contract.progress import CallProgress, TaskId
from batch_infer.contract.secret import SecretReference
from batch_infer.engine.budget.pool import PoolState

PROBE_INTERVAL_S = 0.5
"""`is_cancelled` is asked about a call's running tasks at most this often."""

CANCELLED = "cancelled"

_log = logging.getLogger(__name__)


class Call:
    """One `ai_query` in a plan, as the driver sees it. Made by `DriverService.open_call`.

    A fatal report ends the tasks of its own stage, repeated attempts included. A later action over the same plan has
    another stage, and so starts afresh: whoever has mended the cause (a key, say) need not build the plan anew.

    Attributes:
        call_id: What reports name it by.
        budget: The endpoint's, from which its tasks are granted what they may use. `None`: they are granted nothing.
        is_cancelled: Asked whether a task attempt's stage was cancelled; `True` stops that attempt. Passes over the
            running tasks happen at most every `PROBE_INTERVAL_S`, one at a time, on a thread of their own, so the
            hook may block; with many tasks it should remember its answers by stage. `None`: nobody is asked.
    """

    def __init__(
        self,
        call_id: str,
        *,
        secrets: Collection[SecretReference] = (),
        local_address: Callable[[str], str] | None = None,
        budget: Budget | None = None,
        on_close: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.call_id = call_id
        self.is_cancelled: Callable[[TaskId], bool] | None = None
        self.local_address = local_address
        self.budget = budget
        self._secrets = {str(reference): reference for reference in secrets}
        self._on_close = on_close
        self._clock = clock
        self._lock = threading.Lock()
        self._progress = CallProgress()
        self._stop: str | None = None
        self._halt: str | None = None
        self._fatal: dict[int, str] = {}
        self._fatal_callbacks: list[Callable[[str], None]] = []
        self._cancelled: set[TaskId] = set()
        self._probing = False
        self._next_probe = 0.0
        self._hook_failed = False

    def progress(self) -> CallProgress:
        """A snapshot; it does not change any more."""
        with self._lock:
            return self._progress.copy()

    @property
    def fatal(self) -> str | None:
        """The first fatal report of any task, or `None`."""
        with self._lock:
            return next(iter(self._fatal.values()), None)

    @property
    def stopped(self) -> str | None:
        """Why every task of this call is told to stop (a fatal report, or else `stop`), or `None`."""
        with self._lock:
            return next(iter(self._fatal.values()), None) or self._stop

    def stop(self, reason: str) -> None:
        """Tells every task to stop with its next heartbeat. The first reason stays; a fatal report's goes before it."""
        with self._lock:
            self._stop = self._stop or fitting(reason) or "stopped"

    @property
    def halted(self) -> str | None:
        """Why nothing further is sent, or `None`."""
        with self._lock:
            return self._halt

    def halt(self, reason: str) -> None:
        """Has every task send nothing further, from its next heartbeat on, and end well with what it has."""
        with self._lock:
            self._halt = self._halt or fitting(reason) or "halted"

    def on_fatal(self, callback: Callable[[str], None]) -> None:
        """Has `callback` called with a stage's first fatal message, on a thread of its own; at once if there is one."""
        with self._lock:
            self._fatal_callbacks.append(callback)
            fatal = next(iter(self._fatal.values()), None)
        if fatal is not None:
            self._spawn("fatal", lambda: self._call_back([callback], fatal))

    def limits(self) -> PoolState | None:
        """How the endpoint's budget is used at this moment; `None`: the call has none."""
        return self.budget.state() if self.budget is not None else None

    def close(self) -> None:
        """Forgets the call on the service: its tasks' requests are refused from now on. Idempotent."""
        self._on_close()

    def secret_reference(self, text: str) -> SecretReference | None:
        """The reference, if this call was opened with it."""
        return self._secrets.get(text)

    def take(self, report: Report) -> Directive:
        """Takes a heartbeat and says what the task is to do. Never blocks on a hook."""
        with self._lock:
            self._progress.apply(report.task, report.counters, finished=report.finished)
            callbacks: list[Callable[[str], None]] = []
            fatal = None
            if report.fatal is not None and report.task.stage not in self._fatal:
                fatal = self._fatal[report.task.stage] = fitting(report.fatal) or "a task met a fatal error"
                callbacks = list(self._fatal_callbacks)
            stop = self._fatal.get(report.task.stage) or self._stop
            stop = stop or (CANCELLED if report.task in self._cancelled else None)
            halt = self._halt
            if report.finished:
                self._cancelled.discard(report.task)
            probe = self._claim_probe()
        if fatal is not None and callbacks:
            message = fatal
            self._spawn("fatal", lambda: self._call_back(callbacks, message))
        if probe is not None:
            hook, tasks = probe
            self._spawn("probe", lambda: self._probe(hook, tasks))
        return Directive(stop=stop, halt=halt, grant=self._grant(report, is_over=report.finished or stop is not None))

    def lost(self, task: TaskId) -> None:
        """Takes note that the connection that reported `task` broke."""
        with self._lock:
            self._progress.lost(task)
        if self.budget is not None:
            self.budget.leave((self.call_id, task))

    def _grant(self, report: Report, *, is_over: bool) -> Grant | None:
        if self.budget is None or report.standing is None:
            return None
        member = (self.call_id, report.task)
        if is_over:
            self.budget.leave(member, report.standing)
            return None
        return self.budget.exchange(member, report.standing)

    def _claim_probe(self) -> tuple[Callable[[TaskId], bool], list[TaskId]] | None:
        hook, now = self.is_cancelled, self._clock()
        if hook is None or self._probing or now < self._next_probe:
            return None
        tasks = sorted(self._progress.running() - self._cancelled)
        if not tasks:
            return None
        self._probing, self._next_probe = True, now + PROBE_INTERVAL_S
        return hook, tasks

    def _probe(self, hook: Callable[[TaskId], bool], tasks: list[TaskId]) -> None:
        cancelled: set[TaskId] = set()
        try:
            cancelled.update(task for task in tasks if hook(task))
        except Exception as error:  # noqa: BLE001 - a broken hook must not stop the heartbeats
            if not self._hook_failed:
                self._hook_failed = True
                _log.warning("Call %s: cancelled tasks cannot be told (%s).", self.call_id, error)
        finally:
            with self._lock:
                self._cancelled |= cancelled
                self._probing = False

    def _call_back(self, callbacks: list[Callable[[str], None]], message: str) -> None:
        for callback in callbacks:
            try:
                callback(message)
            except Exception:  # noqa: BLE001 - each callback on its own; rarely more than one
                _log.exception("Call %s: a callback for fatal errors failed.", self.call_id)

    def _spawn(self, what: str, work: Callable[[], None]) -> None:
        threading.Thread(target=work, name=f"batch-infer-{what}-{self.call_id}", daemon=True).start()

    def __repr__(self) -> str:
        return f"Call({self.call_id!r})"

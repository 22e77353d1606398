"""Owns the worker's side of the driver's service: asking, reporting, backing off. Does not count rows or stop tasks.

DriverError (BatchInferError)
├ DriverUnreachable     no usable answer: refused, timed out, broken off, another session's service
└ DriverRefused         answered, and not granted; or not ready in time

On workers.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from batch_infer.adapters.coordinator.connection import Connection
from batch_infer.adapters.coordinator.protocol import (
    PENDING_AFTER_S,
    AddressReply,
    AskAddress,
    AskSecret,
    Codec,
    Directive,
    FrameError,
    Pending,
    Refused,
    Reply,
    Report,
    Request,
    SecretReply,
    fitting,
)
from batch_infer.contract.errors import BatchInferError
from batch_infer.contract.limits import Standing
from batch_infer.contract.plan import ServiceAddress
from batch_infer.contract.progress import Counters, TaskId
from batch_infer.contract.secret import SecretReference

ASK_ATTEMPTS = 3
"""Attempts at a question before the driver counts as unreachable. All requests are safe to repeat."""
ASK_BACKOFF_S = 0.25
REPLY_MARGIN_S = 5.0
"""On top of what the service may wait before it answers `Pending`."""
REPORT_BACKOFF_S = 1.0
MAX_REPORT_BACKOFF_S = 30.0
LAST_REPORT_TIMEOUT_S = 0.5
"""Seconds for a last report while the service is unreachable. One try: short tasks must not wait for a dead driver."""

_TROUBLE = (OSError, FrameError, ValueError)  # ValueError: a host name that cannot be encoded

_log = logging.getLogger(__name__)


class DriverError(BatchInferError):
    """The driver's service did not give what a worker needs."""


class DriverUnreachable(DriverError):
    """No usable answer came from the driver's service."""


class DriverRefused(DriverError):
    """The driver's service answered, and did not give what was asked for."""


@dataclass(slots=True)
class _ProcessState:
    """What belongs to one process and must not be shared with a forked child."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    connection: Connection | None = None
    failures: int = 0
    """Reports in a row that found no service."""
    retry_at: float = 0.0
    said_unreachable: bool = False
    refused_calls: set[str] = field(default_factory=set)

    def disconnect(self) -> None:
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.close()


class DriverClient:
    """Talks to the driver's service from a worker; blocking, from any number of threads.

    Contract: connects when first used, and again after a broken connection. Reports share one connection; a question
    has one of its own, so that a model server that takes minutes to start delays no heartbeat. In a forked child it
    makes connections of the child's own. Keep one a process, across tasks: it remembers that a driver is unreachable.

    Args:
        address: From `DriverService.address`.
        connect_timeout_s: Seconds to connect, and for a report to be answered.
    """

    def __init__(self, address: ServiceAddress, connect_timeout_s: float = 3.0) -> None:
        self.address = address
        self.connect_timeout_s = connect_timeout_s
        self._codec = Codec(address.token)
        self._by_pid: dict[int, _ProcessState] = {}

    def secret(self, call: str, reference: SecretReference, timeout_s: float = 60.0) -> str | None:
        """The secret, resolved on the driver at this moment; `None`: the driver cannot resolve it either.

        Raises:
            DriverUnreachable: no answer.
            DriverRefused: the call is unknown or was not opened with this reference; or the place holds no key.
        """
        reply = self._ask(
            lambda wait_s: AskSecret(call, str(reference), wait_s), timeout_s, f"the secret '{reference}'"
        )
        if isinstance(reply, SecretReply):
            return reply.value
        raise self._unexpected(reply)

    def local_address(self, call: str, endpoint: str, timeout_s: float = 600.0) -> str:
        """The URL of the driver's model server for `endpoint`; waits while it starts.

        Raises:
            DriverUnreachable: no answer.
            DriverRefused: the call is unknown or has no such server, it failed to start, or `timeout_s` is over.
        """
        reply = self._ask(lambda wait_s: AskAddress(call, endpoint, wait_s), timeout_s, f"the server of {endpoint!r}")
        if isinstance(reply, AddressReply):
            return reply.url
        raise self._unexpected(reply)

    def report(
        self,
        call: str,
        task: TaskId,
        counters: Counters,
        *,
        finished: bool = False,
        fatal: str | None = None,
        standing: Standing | None = None,
        timeout_s: float | None = None,
    ) -> Directive | None:
        """Sends one heartbeat. Also good before a task's first request, to learn whether it should start at all.

        Contract: never raises because of the network. Unreachable is said once a process in the log; after that,
        reports return `None` at once except for one try every 1 to `MAX_REPORT_BACKOFF_S` seconds. A fatal report is
        always tried, and so is, briefly, a last one.

        Args:
            call: The call's id.
            task: The reporting attempt.
            counters: Cumulative since the attempt began.
            finished: This is the attempt's last report.
            fatal: Why no row of the whole call can succeed; every other task is told to stop with these words.
            standing: Where the attempt stands with the endpoint's budget; the directive then holds a grant.
            timeout_s: Seconds in all, for connecting and for the answer. `None`: `connect_timeout_s`.

        Returns:
            What to do, or `None`: the driver is unreachable, or does not know the call.
        """
        state = self._state()
        report = Report(call, task, counters, finished, None if fatal is None else fitting(fatal), standing)
        deadline = time.monotonic() + (self.connect_timeout_s if timeout_s is None else timeout_s)
        if not state.lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
            return None
        try:
            if state.failures and fatal is None:
                if not finished and time.monotonic() < state.retry_at:
                    return None
                deadline = min(deadline, time.monotonic() + LAST_REPORT_TIMEOUT_S) if finished else deadline
            try:
                reply = self._exchange_kept(state, report, deadline)
            except _TROUBLE as error:
                self._note_failure(state, error)
                return None
            state.failures = 0
        finally:
            state.lock.release()
        if isinstance(reply, Directive):
            return reply
        if isinstance(reply, Refused) and call not in state.refused_calls:
            state.refused_calls.add(call)
            _log.warning("The driver takes no progress of this task: %s The task goes on without.", reply.message)
        return None

    def close(self) -> None:
        """Closes this process's connection. The client stays usable, and connects again when it is used."""
        state = self._state()
        with state.lock:
            state.disconnect()

    def _state(self) -> _ProcessState:
        pid = os.getpid()
        state = self._by_pid.get(pid)
        if state is None:
            # `setdefault` is atomic, so that two first threads of a child agree. A lock or a connection of the parent
            # must not be used: the lock may be held by a thread that the fork did not copy.
            state = self._by_pid.setdefault(pid, _ProcessState())
            for other in [other for other in list(self._by_pid) if other != pid]:
                inherited = self._by_pid.pop(other, None)
                if inherited is not None:
                    inherited.disconnect()
        return state

    def _exchange_kept(self, state: _ProcessState, request: Request, deadline: float) -> Reply:
        kept = state.connection
        if kept is not None:
            try:
                return kept.exchange(request, deadline)
            except ConnectionError:
                state.disconnect()  # it broke since the last report: a fresh one may do
            except BaseException:
                state.disconnect()
                raise
        connection = Connection(self.address, self._codec, deadline)
        try:
            reply = connection.exchange(request, deadline)
        except BaseException:
            connection.close()
            raise
        state.connection = connection
        return reply

    def _note_failure(self, state: _ProcessState, error: Exception) -> None:
        state.failures += 1
        pause = min(MAX_REPORT_BACKOFF_S, REPORT_BACKOFF_S * 2 ** min(state.failures - 1, 10))
        state.retry_at = time.monotonic() + pause * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, not a secret
        if not state.said_unreachable:
            state.said_unreachable = True
            _log.warning(
                "%s The task goes on without live progress and stop signals, and keeps trying. Said once.",
                self._unreachable(error),
            )

    def _ask(self, request: Callable[[float], Request], timeout_s: float, what: str) -> Reply:
        deadline = time.monotonic() + timeout_s
        connection: Connection | None = None
        failures = 0
        try:
            while True:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise DriverRefused(
                        f"the driver did not have {what} ready within {timeout_s:g} s. Look at the driver's log for "
                        "what it waits for, and run again."
                    )
                try:
                    if connection is None:
                        connection = Connection(
                            self.address, self._codec, time.monotonic() + min(left, self.connect_timeout_s)
                        )
                    wait_s = min(left, PENDING_AFTER_S)
                    reply = connection.exchange(request(wait_s), time.monotonic() + wait_s + REPLY_MARGIN_S)
                except _TROUBLE as error:
                    failures += 1
                    if connection is not None:
                        connection.close()
                        connection = None
                    if failures >= ASK_ATTEMPTS:
                        raise DriverUnreachable(self._unreachable(error)) from None
                    time.sleep(min(left, ASK_BACKOFF_S * 2**failures * random.random()))  # noqa: S311 - jitter
                    continue
                failures = 0
                if not isinstance(reply, Pending):
                    return reply
        finally:
            if connection is not None:
                connection.close()

    def _unreachable(self, error: Exception) -> str:
        where = f"{self.address.host}:{self.address.port}"
        if isinstance(error, ConnectionResetError | FrameError):
            return (
                f"The driver's service at {where} does not accept this worker ({error}): the session that the "
                "DataFrame was built in was stopped. Build the DataFrame again in the current session and run it."
            )
        return (
            f"The driver's service at {where} cannot be reached ({error}). Check that workers may connect to the "
            "driver at that address (spark.driver.host, firewalls)."
        )

    def _unexpected(self, reply: Reply) -> DriverRefused:
        if isinstance(reply, Refused):
            return DriverRefused(reply.message)
        return DriverRefused(
            f"the driver answered with {type(reply).__name__}, which does not fit the question. "
            "Install the same version of batch-infer on the driver and on the workers."
        )

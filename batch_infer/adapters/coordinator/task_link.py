"""Owns one task's link to the driver: check-in, heartbeat, grants, stop and halt, secrets, a local model's address.

Where there is no driver's service, or it does not answer, the link keeps the task to a share of its own (`grants`). On
workers; the driver's side is `service`.

On workers.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator

from batch_infer.adapters.coordinator.client import DriverClient, DriverError
from batch_infer.adapters.coordinator.grants import Grants
from batch_infer.adapters.coordinator.protocol import Directive
from batch_infer.adapters.coordinator.reporter import Reporter
from batch_infer.contract.errors import EndpointError, JobRejected, SinkError
from batch_infer.contract.plan import CallPlan
from batch_infer.contract.progress import Counters, TaskId
from batch_infer.contract.secret import SecretReference
from batch_infer.engine.ports import Clock, Permits
from batch_infer.engine.tally import Tally


class TaskLink:
    """The link of one task attempt. `check_in` first; then `open` around the work, with `keep` on the event loop.

    Args:
        client: The process's connection to the service; `None` where there is no service.
        plan: The call.
        task: The attempt.
        clock: Time.
        loop: The event loop that sends.
        tally: What the task counts; told with every heartbeat.
    """

    def __init__(
        self,
        client: DriverClient | None,
        plan: CallPlan,
        task: TaskId,
        *,
        clock: Clock,
        loop: asyncio.AbstractEventLoop,
        tally: Tally,
    ) -> None:
        self._client = client
        self._plan = plan
        self._task = task
        self._tally = tally
        self._grants = Grants(plan.endpoint, plan.slots, clock, loop, tally)
        self._directive = Directive()

    @property
    def permits(self) -> Permits:
        """What the window asks."""
        return self._grants.permits

    def check_in(self) -> None:
        """Asks the driver whether to begin at all, and for the first grant. Blocks.

        Raises:
            JobRejected: the call is to stop.
        """
        directive = None
        if self._client is not None:
            standing = self._grants.permits.standing()
            directive = self._client.report(self._plan.call_id, self._task, self._counted(), standing=standing)
        if directive is None:
            return
        if directive.stop:
            raise JobRejected(directive.stop, kind="stopped")
        if directive.grant is not None:
            self._grants.take(directive.grant)
        self._directive = directive

    @contextlib.contextmanager
    def open(self, *, stop: Callable[[str], None], halt: Callable[[str], None]) -> Iterator[None]:
        """Heartbeats while the block runs; what ends the job is published before it is raised.

        Args:
            stop: Told why the run is to end at once; on another thread.
            halt: Told why nothing further is to be sent; on another thread.
        """
        if self._directive.halt:
            halt(self._directive.halt)
        if self._client is None:
            yield
            return
        reporter = Reporter(
            self._client,
            self._plan.call_id,
            self._task,
            self._counted,
            stop,
            on_halt=halt,
            standing=self._grants.permits.standing,
            on_grant=self._grants.take,
        )
        self._grants.come_early = reporter.hurry
        reporter.start()
        try:
            yield
        except (EndpointError, SinkError) as error:
            if getattr(error, "kind", None) != "stopped":
                reporter.fatal(str(error))
            raise
        finally:
            reporter.close()

    async def keep(self) -> None:
        """Keeps the permits supplied, whether the driver answers or not. On the event loop, until cancelled."""
        await self._grants.keep()

    def secret(self, reference: SecretReference) -> str | None:
        """A secret that this process cannot resolve, from the driver; `None` where there is none to ask. Blocks.

        Raises:
            DriverError: the driver does not answer, or refuses.
        """
        return None if self._client is None else self._client.secret(self._plan.call_id, reference)

    def local_address(self, model: str) -> str:
        """The address of an embedded model's server, which runs on the driver. Blocks.

        Raises:
            DriverError: the driver does not answer, or refuses.
        """
        if self._client is None:
            raise DriverError("its server runs on the driver, which this worker cannot reach.")
        return self._client.local_address(self._plan.call_id, model)

    def _counted(self) -> Counters:
        return self._tally.snapshot(self._plan.endpoint)

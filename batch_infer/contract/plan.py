"""Owns the plan of one call: what the driver has decided, as it travels to the workers. Pure data; holds no secret.

Made on the driver (`spark.planning`), read on workers (`adapters.worker`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from batch_infer.contract.endpoint import Endpoint
from batch_infer.contract.reply_reader import ReplyReader
from batch_infer.contract.request import CallIdentity
from batch_infer.contract.result_types import TypeJson


@dataclass(frozen=True, slots=True)
class ServiceAddress:
    """Where the service is, and the token that lets a worker speak to it. For Spark's closures; `repr` redacts."""

    host: str
    port: int
    token: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallPlan:
    """One `ai_query` of one query, as it travels to the workers. Frozen and picklable; holds no secret."""

    call_id: str
    endpoint: Endpoint
    parameters: str
    """`modelParameters` as JSON."""
    response_format: str | None
    """The wire's `response_format` as JSON."""
    result_type: TypeJson
    """T, in Spark's JSON form."""
    format_type: TypeJson | None = None
    """The type that `responseFormat` was given as, in Spark's JSON form, where it was given as DDL."""
    fail_on_error: bool
    slots: int
    """Tasks that can run at the same time in the cluster, by which limits are divided."""
    service: ServiceAddress | None
    """The driver's service; `None` where there is none."""
    function: str = "ai_query"
    """Name under which the call was made, for messages and Spark's plans."""
    ledger: str | None = None
    """Path or URI of the ledger; `None` remembers nothing."""
    run: str = ""
    """Names the run in the ledger: the call, or the job and its continuation (`adapters.ledger.records.same_run`)."""
    fresh: bool = False
    """Ask again, although answers are known from other runs."""
    retry_failed: bool = False
    """Ask again for what failed in other runs, even where the same failure is to be expected."""

    def reader(self) -> ReplyReader:
        """Reads this call's replies; made once per task, because it may compile a JSON Schema."""
        response_format = msgspec.json.decode(self.response_format) if self.response_format else None
        return ReplyReader(self.result_type, response_format, self.format_type)

    def identity(self) -> CallIdentity:
        """What all rows' keys share."""
        response_format = msgspec.json.decode(self.response_format) if self.response_format else None
        return CallIdentity(
            endpoint=self.endpoint.identity,
            task=self.endpoint.task,
            parameters=msgspec.json.decode(self.parameters),
            response_format=response_format,
        )

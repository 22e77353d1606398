"""Owns a worker process's side of a call: one event loop, one HTTP client, and the bridge to Spark's blocking iterators.

    Spark's iterator ──▶ feeder thread ──▶ event loop (engine.window) ──▶ the task's own thread

The loop and the clients are made lazily after the fork and kept across tasks; a changed process id makes new ones.
Does not know Arrow or Spark: `spark.udf` turns batches into requests and outcomes into columns.
"""

from __future__ import annotations

import asyncio
import os
import random
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from batch_infer.adapters.driver.client import DriverClient, DriverError
from batch_infer.adapters.driver.protocol import ServiceAddress
from batch_infer.adapters.driver.reporter import Reporter
from batch_infer.adapters.ledger import Ledger, LedgerStore, LedgerWriter
from batch_infer.adapters.local.truncate import fit, server_tokenizer
from batch_infer.adapters.secrets import resolve
from batch_infer.adapters.sender import Sender
from batch_infer.adapters.transport import Transport
from batch_infer.adapters.transport.choose import open_transport
from batch_infer.adapters.wire.openai import OpenAIWire
from batch_infer.contract.endpoint import Endpoint
from batch_infer.contract.errors import EndpointError, JobRejected, SinkError
from batch_infer.contract.progress import Counters, TaskId
from batch_infer.contract.reply import Outcome, Reply
from batch_infer.contract.request import CallIdentity, Request
from batch_infer.contract.secret import SecretReference
from batch_infer.contract.typed import TypeJson
from batch_infer.engine.clock import SystemClock
from batch_infer.engine.permits import LocalShare
from batch_infer.engine.retry import RetryPolicy
from batch_infer.engine.store import NoStore, Store
from batch_infer.engine.tally import Tally
from batch_infer.engine.tokens import DEFAULT_COMPLETION_TOKENS
from batch_infer.engine.window import Batch, Bounds, Finished, Run, Send


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
    fail_on_error: bool
    slots: int
    """Tasks that can run at the same time in the cluster, by which limits are divided."""
    service: ServiceAddress | None
    """The driver's service; `None` where there is none."""
    ledger: str | None = None
    """Path or URI of the ledger; `None` remembers nothing."""
    fresh_since: float | None = None
    """Ask again, although answers are known from before this time (seconds since 1970)."""

    def identity(self) -> CallIdentity:
        """What all rows' keys share."""
        response_format = msgspec.json.decode(self.response_format) if self.response_format else None
        return CallIdentity(
            endpoint=self.endpoint.identity,
            task=self.endpoint.task,
            parameters=msgspec.json.decode(self.parameters),
            response_format=response_format,
        )


def answer(plan: CallPlan, task: TaskId, batches: Iterator[Batch], *, ordered: bool = True) -> Iterator[Finished]:
    """Answers batches (in order, unless told otherwise), with as many requests in flight as the call's permits allow. Runs on a worker.

    Raises:
        JobRejected: no row can succeed, or another task of this call has already found so.
        EndpointError: a row failed for good, under `fail_on_error`.
    """
    process = WorkerProcess.current()
    client = process.client(plan.service)
    tally = Tally()
    clock = SystemClock()

    def count() -> Counters:
        return tally.snapshot(plan.endpoint)

    if client is not None:
        directive = client.report(plan.call_id, task, count())
        if directive is not None and directive.stop:
            raise JobRejected(directive.stop, kind="stopped")
    store = _open_store(plan, process, task)
    send = _open_sender(plan, process, client)
    permits = LocalShare(plan.endpoint, plan.slots, clock, random.random)
    feed = _Feed(process.loop, batches)
    run = Run(
        feed,
        send,
        permits,
        store,
        clock,
        policy=RetryPolicy.of(plan.endpoint),
        bounds=bounds_of(plan),
        fail_fast=plan.fail_on_error,
        coalesce=plan.ledger is not None,
        ordered=ordered,
        tally=tally,
    )
    results = run.results()

    def stop(reason: str) -> None:
        process.loop.call_soon_threadsafe(run.stop, JobRejected(reason, kind="stopped"))

    reporter = Reporter(client, plan.call_id, task, count, stop) if client is not None else None
    if reporter is not None:
        reporter.start()
    try:
        feed.start()
        while (finished := process.wait(_next(results))) is not None:
            yield finished
    except (EndpointError, SinkError) as error:
        if reporter is not None and getattr(error, "kind", None) != "stopped":
            reporter.fatal(str(error))
        raise
    finally:
        feed.close()
        process.wait(results.aclose())  # type: ignore[attr-defined]
        if isinstance(store, LedgerStore):
            store.close()
        if reporter is not None:
            reporter.close()


def bounds_of(plan: CallPlan) -> Bounds:
    """Packing and reservations for a call."""
    endpoint = plan.endpoint
    if endpoint.task == "embeddings":
        return Bounds(rows_per_request=endpoint.inputs_per_request, tokens_per_request=endpoint.tokens_per_request)
    parameters = msgspec.json.decode(plan.parameters)
    most = parameters.get("max_tokens") or parameters.get("max_completion_tokens") or DEFAULT_COMPLETION_TOKENS
    return Bounds(completion_tokens=most * (parameters.get("n") or 1))


def _open_store(plan: CallPlan, process: WorkerProcess, task: TaskId) -> Store:
    if plan.ledger is None:
        return NoStore()
    endpoint = plan.endpoint

    def price(outcome: Outcome) -> float | None:
        usage = outcome.usage
        return endpoint.cost_usd(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)

    ledger = process.ledger(plan.ledger)
    return LedgerStore(
        ledger,
        LedgerWriter(ledger.files, f"{task.stage}-{task.partition}-{task.attempt}"),
        endpoint=endpoint.name,
        model=endpoint.model,
        price=price,
        fresh=plan.fresh_since is not None,
        fresh_since=plan.fresh_since,
    )


def _open_sender(plan: CallPlan, process: WorkerProcess, client: DriverClient | None) -> Send:
    endpoint = plan.endpoint
    is_local = endpoint.provider == "local"
    try:
        base_url = _local_address(plan, client) if is_local else endpoint.base_url
        api_key = _secret(plan, client)
    except DriverError as error:
        raise JobRejected(f"endpoint {endpoint.name!r}: {error}", kind="unreachable") from None
    wire = OpenAIWire(
        endpoint,
        base_url=base_url,
        parameters=msgspec.json.decode(plan.parameters),
        response_format=msgspec.json.decode(plan.response_format) if plan.response_format else None,
        api_key=api_key,
    )
    transport = process.transport(endpoint)
    sender = Sender(endpoint, wire, transport, plan.result_type)
    if not is_local or endpoint.task != "embeddings":
        return sender
    tokenize = server_tokenizer(base_url, transport)

    async def send_fitted(requests: Sequence[Request]) -> Sequence[Reply | EndpointError]:
        inputs = await fit([str(request.content) for request in requests], tokenize)
        return await sender([replace(request, content=text) for request, text in zip(requests, inputs, strict=True)])

    return send_fitted


def _local_address(plan: CallPlan, client: DriverClient | None) -> str:
    if client is None:
        raise DriverError("its server runs on the driver, which this worker cannot reach.")
    return client.local_address(plan.call_id, "embed" if plan.endpoint.task == "embeddings" else "chat")


def _secret(plan: CallPlan, client: DriverClient | None) -> str | None:
    if plan.endpoint.api_key is None:
        return None
    reference = SecretReference.parse(plan.endpoint.api_key)
    value = resolve(reference)
    if value is None and client is not None:
        value = client.secret(plan.call_id, reference)
    if value is None:
        raise JobRejected(
            f"endpoint {plan.endpoint.name!r}: its api_key {str(reference)!r} leads to nothing, neither on the worker "
            "nor on the driver. Set it on the driver before running the query.",
            kind="authentication",
        )
    return value


class WorkerProcess:
    """What one Python process keeps across tasks: an event loop in a thread, HTTP clients, the driver's client."""

    _instance: WorkerProcess | None = None

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.loop = _new_loop()
        self._transports: dict[tuple[Any, ...], Transport] = {}
        self._clients: dict[ServiceAddress, DriverClient] = {}
        self._ledgers: dict[str, Ledger] = {}
        threading.Thread(target=self._run, name="batch_infer-loop", daemon=True).start()

    @classmethod
    def current(cls) -> WorkerProcess:
        """This process's own; made on first use, and again after a fork."""
        if cls._instance is None or cls._instance.pid != os.getpid():
            cls._instance = cls()
        return cls._instance

    def wait(self, work: Any) -> Any:
        """Runs a coroutine on the loop and blocks for its result."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    def transport(self, endpoint: Endpoint) -> Transport:
        """The HTTP client for an endpoint's connection settings."""
        settings = (endpoint.transport, endpoint.connect_timeout_s, endpoint.ca_file)
        if settings not in self._transports:
            self._transports[settings] = self.wait(_open(endpoint))
        return self._transports[settings]

    def client(self, address: ServiceAddress | None) -> DriverClient | None:
        """The connection to a driver's service."""
        if address is None:
            return None
        if address not in self._clients:
            self._clients[address] = DriverClient(address)
        return self._clients[address]

    def ledger(self, path: str) -> Ledger:
        """The ledger at a path, knowing what is in it by now."""
        if path in self._ledgers:
            self._ledgers[path].refresh()
        else:
            self._ledgers[path] = Ledger.open(path)
        return self._ledgers[path]

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()


async def _open(endpoint: Endpoint) -> Transport:
    # On the loop, because a client belongs to the loop that it is made on.
    return open_transport(
        endpoint.transport, connect_timeout_s=endpoint.connect_timeout_s, max_connections=None, ca_file=endpoint.ca_file
    )


async def _next(results: AsyncIterator[Finished]) -> Finished | None:
    try:
        return await results.__anext__()
    except StopAsyncIteration:
        return None


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop  # noqa: PLC0415 - optional, where the platform has it
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


class _Feed:
    """An async iterator over a blocking one, which a thread of its own reads at most one batch ahead."""

    _END = object()

    def __init__(self, loop: asyncio.AbstractEventLoop, batches: Iterator[Batch]) -> None:
        self._loop = loop
        self._batches = batches
        self._closed = threading.Event()
        self._wanted = threading.Semaphore(1)
        self._queue: asyncio.Queue[Any] = asyncio.Queue()

    def start(self) -> None:
        """Begins to read."""
        threading.Thread(target=self._read, name="batch_infer-feeder", daemon=True).start()

    def close(self) -> None:
        """Reads no further batch. A read that Spark is blocking on ends with the task."""
        self._closed.set()
        self._wanted.release()

    def __aiter__(self) -> _Feed:
        return self

    async def __anext__(self) -> Batch:
        item = await self._queue.get()
        self._wanted.release()
        if item is self._END:
            raise StopAsyncIteration
        if isinstance(item, BaseException):
            raise item
        batch: Batch = item
        return batch

    def _read(self) -> None:
        put: Callable[[Any], Any] = self._queue.put_nowait
        last: Any = self._END
        try:
            while not self._closed.is_set():
                self._wanted.acquire()
                batch = next(self._batches, None)
                if batch is None:
                    break
                self._loop.call_soon_threadsafe(put, batch)
        except BaseException as error:  # noqa: BLE001 - carried over to the task's own thread, which raises it
            last = error
        self._loop.call_soon_threadsafe(put, last)

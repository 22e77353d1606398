"""Owns a task's side of a call: what is opened for it, and the way of its batches through the engine.

    Spark's iterator ──▶ feeder thread ──▶ event loop (engine.window) ──▶ the task's own thread

Does not know Arrow or Spark: `spark.udf` turns batches into requests and outcomes into columns.

On workers.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace

import msgspec

from batch_infer.adapters.coordinator.client import DriverError
from batch_infer.adapters.coordinator.task_link import TaskLink
from batch_infer.adapters.ledger import LedgerStore, LedgerWriter
from batch_infer.adapters.ledger.records import type_digest
from batch_infer.adapters.local.truncate import fit, server_tokenizer
from batch_infer.adapters.providers import PROVIDERS
from batch_infer.adapters.providers.calls import open_wire
from batch_infer.adapters.worker.credentials import open_credentials
from batch_infer.adapters.worker.process import Feed, WorkerProcess
from batch_infer.adapters.worker.sender import Sender
from batch_infer.contract.errors import JobRejected
from batch_infer.contract.plan import CallPlan
from batch_infer.contract.progress import TaskId
from batch_infer.contract.reply import Outcome
from batch_infer.contract.reply_reader import ReplyReader
from batch_infer.contract.request import Request
from batch_infer.engine.batches import Batch, Bounds, Finished
from batch_infer.engine.ports import NoStore, Send, Sent, SystemClock
from batch_infer.engine.retry import RetryPolicy
from batch_infer.engine.tally import Tally
from batch_infer.engine.token_estimates import DEFAULT_COMPLETION_TOKENS
from batch_infer.engine.window import Run


def answer(
    plan: CallPlan, task: TaskId, batches: Iterator[Batch], reader: ReplyReader, *, ordered: bool = True
) -> Iterator[Finished]:
    """Answers batches, in order unless told otherwise, with as many requests in flight as permits allow. On a worker.

    Replies are read with `reader`, once: what it has read stays with them.

    Raises:
        JobRejected: no row can succeed, or another task of this call has already found so.
        EndpointError: a row failed for good, under `fail_on_error`.
    """
    process, tally, clock = WorkerProcess.current(), Tally(), SystemClock()
    link = TaskLink(process.client(plan.service), plan, task, clock=clock, loop=process.loop, tally=tally)
    link.check_in()
    send = _open_sender(plan, process, link, reader)
    with contextlib.closing(_open_store(plan, process, task)) as store:
        feed = Feed(process.loop, batches)
        run = Run(
            feed,
            send,
            link.permits,
            store,
            clock,
            policy=RetryPolicy.of(plan.endpoint),
            bounds=bounds_of(plan),
            fail_fast=plan.fail_on_error,
            coalesce=plan.ledger is not None,
            ordered=ordered,
            tally=tally,
        )

        def stop(reason: str) -> None:
            process.loop.call_soon_threadsafe(run.stop, JobRejected(reason, kind="stopped"))

        def halt(reason: str) -> None:
            process.loop.call_soon_threadsafe(run.halt, reason)

        with link.open(stop=stop, halt=halt), process.meanwhile(link.keep()):
            yield from _results(run, feed, process)


def _results(run: Run, feed: Feed, process: WorkerProcess) -> Iterator[Finished]:
    results = run.results()
    try:
        feed.start()
        while (finished := process.wait(_next(results))) is not None:
            yield finished
    finally:
        feed.close()
        process.wait(results.aclose())  # type: ignore[attr-defined]


def bounds_of(plan: CallPlan) -> Bounds:
    """Packing and reservations for a call."""
    endpoint = plan.endpoint
    if endpoint.task in ("embeddings", "custom"):
        return Bounds(rows_per_request=endpoint.inputs_per_request, tokens_per_request=endpoint.tokens_per_request)
    parameters = msgspec.json.decode(plan.parameters)
    most = parameters.get("max_tokens") or parameters.get("max_completion_tokens") or DEFAULT_COMPLETION_TOKENS
    return Bounds(completion_tokens=most * (parameters.get("n") or 1))


def _open_store(plan: CallPlan, process: WorkerProcess, task: TaskId) -> NoStore | LedgerStore:
    if plan.ledger is None:
        return NoStore()
    endpoint = plan.endpoint

    def price(outcome: Outcome) -> float | None:
        usage = outcome.usage
        return endpoint.cost_usd(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)

    ledger = process.ledger(plan.ledger)
    writer = LedgerWriter(ledger.files, f"{task.stage}-{task.partition}-{task.attempt}")
    return LedgerStore(
        ledger,
        writer,
        endpoint=endpoint.name,
        model=endpoint.model,
        price=price,
        run=plan.run,
        fresh=plan.fresh,
        retry_failed=plan.retry_failed,
        fail_fast=plan.fail_on_error,
        result_type=type_digest(plan.result_type),
        twins=writer.twins(f"{task.stage}-{task.partition}", ledger.reads),
    )


def _open_sender(plan: CallPlan, process: WorkerProcess, link: TaskLink, reader: ReplyReader) -> Send:
    endpoint = plan.endpoint
    is_local = PROVIDERS[endpoint.provider].is_embedded
    try:
        local = "embed" if endpoint.task == "embeddings" else "chat"
        base_url = link.local_address(local) if is_local else endpoint.base_url
        credentials = open_credentials(endpoint, process, link.secret)
    except DriverError as error:
        raise JobRejected(f"endpoint {endpoint.name!r}: {error}", kind="unreachable") from None
    wire = open_wire(
        endpoint,
        base_url=base_url,
        parameters=msgspec.json.decode(plan.parameters),
        response_format=msgspec.json.decode(plan.response_format) if plan.response_format else None,
        api_key=credentials.api_key,
        headers=credentials.headers,
        query=credentials.query,
    )
    transport = credentials.over(process.transport(endpoint))
    sender = Sender(endpoint, wire, transport, reader, secrets=credentials.secrets)
    if not is_local or endpoint.task != "embeddings":
        return sender
    tokenize = server_tokenizer(base_url, transport)

    async def send_fitted(requests: Sequence[Request]) -> Sent:
        inputs = await fit([str(request.content) for request in requests], tokenize)
        return await sender([replace(request, content=text) for request, text in zip(requests, inputs, strict=True)])

    return send_fitted


async def _next(results: AsyncIterator[Finished]) -> Finished | None:
    try:
        return await results.__anext__()
    except StopAsyncIteration:
        return None

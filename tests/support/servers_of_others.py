"""Processes of servers that others wrote, and the whole path below Spark to them: parameters, wire, sender, engine."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import contextmanager

from batch_infer.adapters.coordinator.grants import Leases
from batch_infer.adapters.providers.calls import check_call, open_wire
from batch_infer.adapters.providers.registry import build_endpoint
from batch_infer.adapters.worker.process import Feed
from batch_infer.adapters.worker.sender import Sender
from batch_infer.contract.content import canonical_messages
from batch_infer.contract.parameters import check_parameters
from batch_infer.contract.reply_reader import ReplyReader
from batch_infer.contract.request import Request
from batch_infer.engine.batches import Batch, Bounds
from batch_infer.engine.ports import NoStore, SystemClock
from batch_infer.engine.retry import RetryPolicy
from batch_infer.engine.tally import Tally
from batch_infer.engine.window import Run

START_TIMEOUT_S = 60.0
KEY = "key-of-nobody"
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def http(method, url, value=None):
    """A call of a server's own control API; its JSON."""
    data = None if value is None else json.dumps(value).encode()
    request = urllib.request.Request(url, data=data, method=method, headers={"content-type": "application/json"})
    with _OPENER.open(request, timeout=10) as response:
        return json.loads(response.read() or b"null")


@contextmanager
def running(command, ready, log):
    """A server's process, once `ready` (a URL) answers; ends with the block."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + START_TIMEOUT_S
            while True:
                try:
                    http("GET", ready)
                    break
                except (urllib.error.URLError, ConnectionError):
                    if process.poll() is not None or time.monotonic() > deadline:
                        raise RuntimeError(f"{command[0]} did not start:\n{log.read_text()[-2000:]}") from None
                    time.sleep(0.05)  # it has no way to tell us
            yield process
        finally:
            process.terminate()
            process.wait(10)


def run(process, requests: Sequence, *, parameters=None, response_format=None, files=(), **fields):
    """Outcomes of one batch through the engine, in order."""
    endpoint = build_endpoint("theirs", {"model": "m", "throttle_deadline_s": 30, **fields})
    checked = check_parameters(parameters, endpoint.task)
    check_call(endpoint, checked, response_format)
    wire = open_wire(
        endpoint, base_url=endpoint.base_url, parameters=checked, response_format=response_format, api_key=KEY
    )
    sender = Sender(endpoint, wire, process.transport(endpoint), ReplyReader("string"))
    clock = SystemClock()
    batch = Batch(
        [
            Request(
                key=str(i),
                content=canonical_messages(content) if isinstance(content, list) else content,
                files=files,
                prompt_tokens=1,
            )
            for i, content in enumerate(requests)
        ]
    )

    async def all_of(feed):
        leases = Leases(endpoint, 1, clock, process.loop, Tally())  # no driver: it grants itself all there is
        keeping = asyncio.ensure_future(leases.keep())
        engine = Run(
            feed,
            sender,
            leases.permits,
            NoStore(),
            clock,
            policy=RetryPolicy.of(endpoint),
            bounds=Bounds(rows_per_request=endpoint.inputs_per_request if endpoint.task == "embeddings" else 1),
            seen=lambda: sender.seen,
            random=lambda: 0.5,
        )
        try:
            return [outcome async for finished in engine.results() for outcome in finished.outcomes]
        finally:
            keeping.cancel()

    feed = Feed(process.loop, iter([batch]))
    feed.start()
    try:
        return process.wait(all_of(feed))
    finally:
        feed.close()

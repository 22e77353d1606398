"""Fixtures of the tests that speak HTTP to a local endpoint which misbehaves on request."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from batch_infer.adapters.transport import HttpReply, Transport
from batch_infer.adapters.transport.httpx_transport import HttpxTransport
from batch_infer.adapters.worker.process import WorkerProcess
from batch_infer.contract.errors import EndpointError
from batch_infer.testing import EndpointConfig, FaultEndpoint


@pytest.fixture
def endpoint_factory() -> Iterator[Callable[..., FaultEndpoint]]:
    """Starts fault endpoints, with `FaultEndpoint`'s arguments; all of them end with the test."""
    with ExitStack() as stack:

        def start(**settings: Any) -> FaultEndpoint:
            return stack.enter_context(FaultEndpoint(**settings))

        yield start


@pytest.fixture(scope="session")
def _one_process() -> Iterator[FaultEndpoint]:
    with FaultEndpoint() as endpoint:
        yield endpoint


@pytest.fixture
def tell(_one_process: FaultEndpoint) -> Callable[..., FaultEndpoint]:
    """Like `endpoint_factory`, without its cost: one process for all tests, given new instructions each time."""

    def start(**settings: Any) -> FaultEndpoint:
        _one_process.wait_until("in_flight", at_most=0)
        _one_process.configure(**{**msgspec.structs.asdict(EndpointConfig()), **settings})
        _one_process.wait_until("open_connections", at_most=0)
        _one_process.reset()
        return _one_process

    return start


def _reqwest(**settings: Any) -> Transport:
    from batch_infer.adapters.transport.reqwest import ReqwestTransport

    return ReqwestTransport(**settings)


def _httpx_over_aiohttp(**settings: Any) -> Transport:
    return HttpxTransport(**settings)


def _httpx_over_httpcore(*, ca_file: str | None = None, **settings: Any) -> Transport:
    return HttpxTransport(httpx.AsyncHTTPTransport(verify=ssl.create_default_context(cafile=ca_file)), **settings)


def _httpx_over_pyreqwest(*, ca_file: str | None = None, connect_timeout_s: float, **settings: Any) -> Transport:
    from pyreqwest.client import ClientBuilder
    from pyreqwest.compatibility.httpx import HttpxTransport as Inner

    builder = ClientBuilder().follow_redirects(False).connect_timeout(timedelta(seconds=connect_timeout_s))
    if ca_file is not None:
        builder = builder.add_root_certificate_pem(Path(ca_file).read_bytes())
    return HttpxTransport(Inner(builder.build()), connect_timeout_s=connect_timeout_s, **settings)


class TransportKind:
    """A transport under test: how it is built, and short ways to ask through it."""

    key = "sk-very-secret"
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}  # noqa: RUF012

    def __init__(self, build: Callable[..., Transport]) -> None:
        self._build = build

    def make(self, *, connect_timeout_s: float = 5.0, **settings: Any) -> Transport:
        return self._build(connect_timeout_s=connect_timeout_s, **settings)

    @staticmethod
    def body(prompt: str) -> bytes:
        return json.dumps({"model": "m", "messages": [{"role": "user", "content": prompt}]}).encode()

    def ask(self, url: str, prompt: str = "hello", *, timeout_s: float | None = 5.0, **settings: Any) -> HttpReply:
        """One request through a transport of its own."""

        async def main() -> HttpReply:
            transport = self.make(**settings)
            try:
                return await transport.post(url, self.headers, self.body(prompt), timeout_s=timeout_s)
            finally:
                await transport.close()

        return asyncio.run(main())

    def failure(self, url: str, prompt: str = "hello", **settings: Any) -> EndpointError:
        """The error of one request that must fail."""
        with pytest.raises(EndpointError) as raised:
            self.ask(url, prompt, **settings)
        return raised.value


HAVE_PYREQWEST = importlib.util.find_spec("pyreqwest") is not None
SHIPPED = [_reqwest, _httpx_over_aiohttp] if HAVE_PYREQWEST else [_httpx_over_aiohttp]
BROUGHT = [_httpx_over_httpcore, _httpx_over_pyreqwest] if HAVE_PYREQWEST else [_httpx_over_httpcore]


def _name(build: Callable[..., Transport]) -> str:
    return build.__name__.strip("_")


@pytest.fixture(params=SHIPPED, ids=_name)
def shipped(request: pytest.FixtureRequest) -> TransportKind:
    """Each transport that `open_transport` builds."""
    return TransportKind(request.param)


@pytest.fixture(params=SHIPPED + BROUGHT, ids=_name)
def http(request: pytest.FixtureRequest) -> TransportKind:
    """Each of these, and httpx over two transports that a user may bring."""
    return TransportKind(request.param)


@pytest.fixture(scope="module")
def process():
    """What a worker process keeps across tasks, for this module's tests."""
    process = WorkerProcess()
    yield process
    for transport in process._transports.values():
        process.wait(transport.close())
    process.loop.call_soon_threadsafe(process.loop.stop)

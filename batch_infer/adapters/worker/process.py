"""Owns what a worker process keeps across tasks (event loop, clients), and the bridge from blocking iterators.

Made lazily after the fork; a changed process id makes a new one. Does not know what is sent.

On workers.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Iterator
from typing import Any

from batch_infer.adapters.coordinator.client import DriverClient
from batch_infer.adapters.credentials.bearer import Token, TokenSource
from batch_infer.adapters.ledger import Ledger
from batch_infer.adapters.transport import Transport
from batch_infer.adapters.transport.choose import open_transport
from batch_infer.contract.endpoint import Endpoint
from batch_infer.contract.errors import ConfigError, JobRejected
from batch_infer.contract.plan import ServiceAddress
from batch_infer.engine.batches import Batch


class WorkerProcess:
    """What one Python process keeps across tasks: an event loop in a thread, HTTP clients, the driver's client."""

    _instance: WorkerProcess | None = None

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.loop = _new_loop()
        self._transports: dict[tuple[Any, ...], Transport] = {}
        self._clients: dict[ServiceAddress, DriverClient] = {}
        self._ledgers: dict[str, Ledger] = {}
        self._tokens: dict[Hashable, TokenSource] = {}
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

    @contextlib.contextmanager
    def meanwhile(self, work: Coroutine[Any, Any, Any]) -> Iterator[None]:
        """Runs a coroutine on the loop while the block runs, and cancels it at its end."""
        task = asyncio.run_coroutine_threadsafe(work, self.loop)
        try:
            yield
        finally:
            task.cancel()

    def transport(self, endpoint: Endpoint) -> Transport:
        """The HTTP client for an endpoint's connection settings, made once in this process.

        Raises:
            JobRejected: it cannot be made, such as by a factory of the user's.
        """
        settings = (endpoint.transport, endpoint.connect_timeout_s, endpoint.ca_file)
        if settings not in self._transports:
            try:
                self._transports[settings] = self.wait(_open(endpoint))
            except ConfigError as error:
                raise JobRejected(f"endpoint {endpoint.name!r}: {error}", kind="config") from error
        return self._transports[settings]

    def tokens(self, identity: Hashable, fetch: Callable[[], Awaitable[Token]]) -> TokenSource:
        """The bearer tokens of one client at one workspace, whatever the call; made with `fetch` the first time."""
        return self._tokens.setdefault(identity, TokenSource(fetch))

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


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop  # noqa: PLC0415 - optional, where the platform has it
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


class Feed:
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

    def __aiter__(self) -> Feed:
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

"""Owns the service that the driver hosts for its workers: sockets, refusals, answers. Does not keep a call's state.

One service serves all sessions and calls of a driver, from one daemon thread with an event loop of its own. Whatever
may block (a secret store, a model server that starts, hooks, callbacks) runs on threads of its own, so that it holds
up nobody's heartbeat; equal questions under way at the same time share one such thread.

On the driver.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
from collections.abc import Callable, Collection, Hashable
from types import TracebackType
from typing import NoReturn, Self

from batch_infer.adapters.coordinator import protocol
from batch_infer.adapters.coordinator.budget import Budget
from batch_infer.adapters.coordinator.call import Call
from batch_infer.adapters.coordinator.connection import keep_alive
from batch_infer.adapters.coordinator.protocol import (
    AddressReply,
    AskAddress,
    AskSecret,
    FrameError,
    Pending,
    Refused,
    Reply,
    Report,
    Request,
    SecretReply,
)
from batch_infer.adapters.credentials import secrets as secret_store
from batch_infer.contract.endpoint import Endpoint
from batch_infer.contract.errors import BatchInferError, ConfigError
from batch_infer.contract.plan import ServiceAddress
from batch_infer.contract.progress import TaskId
from batch_infer.contract.secret import SecretReference

STRANGER_TIMEOUT_S = 10.0
"""A connection that has not shown within this time that it holds the token is closed, and so is one that leaves a
frame half-sent or does not take its reply."""
BACKLOG = 1024
"""Connections waiting to be accepted: all workers of a large cluster start at once."""
START_TIMEOUT_S = 10.0
CLOSE_TIMEOUT_S = 5.0

_WILDCARDS = ("", "0.0.0.0", "::")  # noqa: S104 - recognised, not bound to by default

_log = logging.getLogger(__name__)


class DriverService:
    """Hands over secrets and addresses, collects progress, and spreads "stop". Runs on the driver until `close`.

    Contract: only holders of the token in `address` can read or speak. Secrets are resolved when they are asked for,
    sent encrypted, kept nowhere and never logged. A frame that is not ours closes its connection; the first one of a
    service's life is logged, without its content.

    Args:
        bind_host: The local address to listen on, `spark.driver.bindAddress` for one.
        advertise_host: The name or address under which workers reach it, `spark.driver.host` for one. `None`: as
            `bind_host`, which then may not be a wildcard.
        port: `0` takes any free one.

    Raises:
        ConfigError: nothing can listen there.
    """

    def __init__(self, bind_host: str, advertise_host: str | None = None, port: int = 0) -> None:
        if not advertise_host and bind_host in _WILDCARDS:
            raise ConfigError(
                f"bind_host {bind_host!r} means all interfaces and is no address that workers could connect to. "
                "Give advertise_host too, the driver's name as the workers know it (spark.driver.host)."
            )
        listener = _listen(bind_host, port)
        self._token = os.urandom(protocol.TOKEN_BYTES)
        self._codec = protocol.Codec(self._token)
        self._address = ServiceAddress(advertise_host or bind_host, listener.getsockname()[1], self._token)
        self._lock = threading.Lock()
        self._calls: dict[str, Call] = {}
        self._budgets: dict[Hashable, Budget] = {}
        self._closed = False
        self._refused_frames = 0
        self._under_way: dict[tuple[Call, str], asyncio.Future[Reply]] = {}
        self._loop = asyncio.new_event_loop()
        started = threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(listener, started), name="batch-infer-driver", daemon=True
        )
        self._thread.start()
        started.wait(START_TIMEOUT_S)

    @property
    def address(self) -> ServiceAddress:
        """What workers need to connect. Picklable; it travels in Spark's closures."""
        return self._address

    @property
    def refused_frames(self) -> int:
        """Frames so far that were cut, foreign, replayed or too large; of which only the first is logged."""
        return self._refused_frames

    def open_call(
        self,
        call_id: str,
        *,
        secrets: Collection[SecretReference] = (),
        local_address: Callable[[str], str] | None = None,
        budget: Budget | None = None,
    ) -> Call:
        """Begins to serve a call.

        Args:
            call_id: Unique on this service; travels in the call's closure.
            secrets: The only references that the call's tasks may ask for.
            local_address: From an endpoint's name to its URL, for model servers on the driver; may block for minutes
                to start one. `None`: the call has no such endpoint.
            budget: From `budget`, of the endpoint that the call asks.

        Raises:
            ValueError: the id is taken, or the service is closed.
        """
        call = Call(
            call_id,
            secrets=secrets,
            local_address=local_address,
            budget=budget,
            on_close=lambda: self._forget(call),
        )
        with self._lock:
            if self._closed:
                raise ValueError(f"the driver's service is closed; call {call_id!r} needs a new one.")
            if call_id in self._calls:
                raise ValueError(f"call {call_id!r} is already open; give every call an id of its own.")
            self._calls[call_id] = call
        return call

    def budget(self, endpoint: Endpoint) -> Budget:
        """The one budget of an endpoint, whatever it is called here.

        An endpoint that is given other limits begins a budget anew; calls that run already share the new one. Of
        several names for it, each with limits of its own, the tightest bind: none of them is to be exceeded.
        """
        with self._lock:
            budget = self._budgets.get(endpoint.identity)
            if budget is None:
                budget = self._budgets[endpoint.identity] = Budget(endpoint.limits)
        budget.allow(endpoint.limits, endpoint.name)
        return budget

    def find_call(self, call_id: str) -> Call | None:
        """An open call, or `None`."""
        with self._lock:
            return self._calls.get(call_id)

    def close(self) -> None:
        """Stops listening and closes every connection. Idempotent; waits for the network thread, not for hooks."""
        with self._lock:
            self._closed = True
            self._calls.clear()
        try:
            self._loop.call_soon_threadsafe(self._loop.stop)
        except RuntimeError:
            return  # the loop is closed already
        if threading.current_thread() is not self._thread:
            self._thread.join(CLOSE_TIMEOUT_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a DriverService stays on the driver; send its `address` to the workers.")

    def _forget(self, call: Call) -> None:
        with self._lock:
            if self._calls.get(call.call_id) is call:
                del self._calls[call.call_id]

    # What follows runs on the network thread alone.

    def _run(self, listener: socket.socket, started: threading.Event) -> None:
        loop = self._loop
        asyncio.set_event_loop(loop)
        try:
            try:
                server = loop.run_until_complete(asyncio.start_server(self._serve, sock=listener, backlog=BACKLOG))
            finally:
                started.set()
            loop.run_forever()  # until `close`
            server.close()
            connections = asyncio.all_tasks(loop)
            for connection in connections:
                connection.cancel()
            loop.run_until_complete(asyncio.gather(*connections, return_exceptions=True))
            loop.run_until_complete(asyncio.sleep(0))  # lets the transports close their sockets
        finally:
            listener.close()
            loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reporting: set[tuple[Call, TaskId]] = set()
        try:
            await self._converse(reader, writer, reporting)
        except FrameError as refusal:
            self._refuse(str(refusal))
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError) as error:
            if isinstance(error, TimeoutError) and getattr(error, "errno", None) is None:
                self._refuse("that was not finished in time")
            # Else the worker went away, or the service closes: the task ends here, so nothing is left to cancel.
        except Exception as error:  # noqa: BLE001 - one connection's fault must not reach the others; no content
            _log.warning("The driver's service closes a worker's connection: %s.", type(error).__name__)
        finally:
            for call, task in reporting:
                call.lost(task)
            writer.transport.abort()  # `close` would wait for a peer that does not read

    async def _converse(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, reporting: set[tuple[Call, TaskId]]
    ) -> None:
        keep_alive(writer.get_extra_info("socket"))
        challenge = os.urandom(protocol.CHALLENGE_BYTES)
        writer.write(protocol.MAGIC + challenge)
        number = 0
        while True:
            header = reader.readexactly(protocol.LENGTH_BYTES)
            # Idling is fine for a worker, not for a stranger.
            length = protocol.body_length(await (header if number else asyncio.wait_for(header, STRANGER_TIMEOUT_S)))
            body = await asyncio.wait_for(reader.readexactly(length), STRANGER_TIMEOUT_S)
            request, nonce = self._codec.open_request(body, challenge=challenge, number=number)
            number += 1
            reply = await self._answer(request, reporting)
            writer.write(self._codec.seal_reply(reply, request_nonce=nonce))
            await asyncio.wait_for(writer.drain(), STRANGER_TIMEOUT_S)

    async def _answer(self, request: Request, reporting: set[tuple[Call, TaskId]]) -> Reply:
        with self._lock:
            call = self._calls.get(request.call)
        if call is None:
            return Refused(
                f"the driver knows no call {request.call!r}: its DataFrame belongs to a session that was stopped, or "
                "the call was closed. Build the DataFrame again in the current session and run it."
            )
        if isinstance(request, Report):
            (reporting.discard if request.finished else reporting.add)((call, request.task))
            return call.take(request)
        if isinstance(request, AskSecret):
            return await self._secret(call, request)
        return await self._local_address(call, request)

    async def _secret(self, call: Call, ask: AskSecret) -> Reply:
        reference = call.secret_reference(ask.reference)
        if reference is None:
            return Refused(
                f"call {call.call_id!r} was not opened with the secret it asks for, so the driver does not hand it "
                "over. Name the secret in the endpoint's api_key."
            )
        return await self._shared(
            call, f"secret {reference}", lambda: SecretReply(secret_store.resolve(reference)), ask.wait_s
        )

    async def _local_address(self, call: Call, ask: AskAddress) -> Reply:
        start = call.local_address
        if start is None:
            return Refused(
                f"call {call.call_id!r} has no model server on the driver, so there is no address for endpoint "
                f"{ask.endpoint!r}. Use a 'local/…' endpoint, or give the endpoint a base_url."
            )
        return await self._shared(
            call, f"address {ask.endpoint}", lambda: AddressReply(start(ask.endpoint)), ask.wait_s
        )

    async def _shared(self, call: Call, what: str, work: Callable[[], Reply], wait_s: float) -> Reply:
        """The result of `work`, which blocks, or `Pending`. Equal questions join the one that is under way."""
        key = (call, what)
        future = self._under_way.get(key)
        if future is None:
            future = self._under_way[key] = self._loop.create_future()
            future.add_done_callback(lambda _: self._under_way.pop(key, None))
            threading.Thread(
                target=self._work, args=(future, what, work), name=f"batch-infer-{what}", daemon=True
            ).start()
        done, _ = await asyncio.wait({future}, timeout=min(max(wait_s, 0.0), protocol.PENDING_AFTER_S))
        return future.result() if done else Pending()

    def _refuse(self, why: str) -> None:
        self._refused_frames += 1
        if self._refused_frames == 1:
            _log.warning(
                "The driver's service refused a frame %s, and closed its connection. It may be a worker of a session "
                "that was stopped, or a program that takes this port for another service. Said once.",
                why,
            )

    # What follows runs on threads of its own.

    def _work(self, future: asyncio.Future[Reply], what: str, work: Callable[[], Reply]) -> None:
        reply: Reply
        try:
            reply = work()
        except BatchInferError as error:
            reply = Refused(protocol.fitting(str(error)))
        except Exception as error:  # noqa: BLE001 - whatever it is, the worker must get an answer
            # Only our own messages are known to hold no secret. Of others the worker gets the class, and the driver's
            # log the rest, where it cannot be about a secret.
            if not what.startswith("secret"):
                _log.exception("The driver could not get the %s.", what)
            reply = Refused(f"the driver could not get the {what} ({type(error).__name__}). Its log may say more.")
        try:
            self._loop.call_soon_threadsafe(_settle, future, reply)
        except RuntimeError:
            _log.debug("The service closed before it had the %s.", what)


def _settle(future: asyncio.Future[Reply], reply: Reply) -> None:
    if not future.done():
        future.set_result(reply)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, place = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server((str(place[0]), int(place[1])), family=family, backlog=BACKLOG)
    except OSError as error:
        raise ConfigError(
            f"the driver's service cannot listen on {host!r}, port {port} ({error.strerror or error}). "
            "Give an address of this machine, and a port that is free, or 0 for any."
        ) from None

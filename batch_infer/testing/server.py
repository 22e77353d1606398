"""Owns the fault endpoint's server: slots, queue, latency, the control channel. Runs in a process of its own.

Does not decide what to answer (`behaviour`) nor how bytes are sent (`wire`).
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import deque
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl

import msgspec

from batch_infer.testing import replies, wire
from batch_infer.testing.behaviour import Behaviour, Decision
from batch_infer.testing.config import EndpointConfig
from batch_infer.testing.incoming import Incoming, parse_request
from batch_infer.testing.tally import Tally
from batch_infer.testing.tokens import TOKEN_PATH

CONTROL_PREFIX = "/_control/"
_UNBILLED_FAULTS = frozenset({"reset_before_reply", "close_before_reply", "stall"})


class Work:
    """A request that is waiting for its reply."""

    __slots__ = ("connection", "decision", "request", "serving", "timer")

    def __init__(self, connection: wire.Connection, request: Incoming | None, decision: Decision) -> None:
        self.connection = connection
        self.request = request
        self.decision = decision
        self.serving = False
        self.timer: asyncio.TimerHandle | None = None


class Server:
    """The endpoint's state, on one event loop. Meets `wire.Application`.

    Args:
        config: What it was told.
        clock: Seconds from any origin.
    """

    def __init__(self, config: EndpointConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._serving = 0
        self._queue: deque[Work] = deque()
        self._held: list[Work] = []
        self._waiters: list[tuple[wire.Connection, dict[str, Any], asyncio.TimerHandle]] = []
        self.tally = Tally(keep_bodies=config.keep_bodies, record=config.record)
        self.configure(config)

    def configure(self, config: EndpointConfig) -> None:
        """Starts over with other instructions: rules fire anew, buckets are full. Counts stay."""
        self.config = config
        self.idle_close_s = config.idle_close_s
        self._behaviour = Behaviour(config, self._clock())
        self._pump()

    async def listen(self, port: int) -> tuple[str, str]:
        """Starts to listen, on a free port when `port` is 0. Returns the base URL and the control channel's URL."""
        config = self.config
        loop = asyncio.get_running_loop()
        context = None
        if config.tls_cert is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(config.tls_cert, config.tls_key)
        listener = await loop.create_server(
            lambda: wire.Connection(self), config.host, port, ssl=context, backlog=4096, reuse_address=True
        )
        at = f"{config.host}:{listener.sockets[0].getsockname()[1]}"
        if context is None:
            return f"http://{at}/v1", f"http://{at}{CONTROL_PREFIX}"
        plain = await loop.create_server(lambda: wire.Connection(self), "127.0.0.1", 0)
        return f"https://{at}/v1", f"http://127.0.0.1:{plain.sockets[0].getsockname()[1]}{CONTROL_PREFIX}"

    # What `wire.Connection` calls.

    def handle(self, connection: wire.Connection, head: wire.Head, body: bytes) -> None:
        """Takes a request: to the control channel, or through authentication, limits and rules to its reply."""
        if head.path.startswith(CONTROL_PREFIX):
            self._control(connection, head, body)
            return
        now = self._clock()
        tally = self.tally
        if not connection.counted:
            connection.counted = True
            tally.connections += 1
            tally.open_connections += 1
        tally.arrived(head.path, head.headers.keys(), body, now)
        try:
            request, decision = self._judge(head, body, now)
        except Exception as error:  # noqa: BLE001 - a request that this endpoint cannot read must not look like a stall
            message = f"The endpoint cannot handle this request: {type(error).__name__}: {error}"
            request, decision = None, Decision(500, {}, replies.error_body(500, message, code="script_error"))
        work = connection.work = Work(connection, request, decision)
        config = self.config
        if decision.admitted and config.slots is not None and self._serving >= config.slots:
            if config.queue_limit is None or len(self._queue) < config.queue_limit:
                self._queue.append(work)
            else:
                message = "The queue is full."
                work.decision = Decision(503, {}, replies.error_body(503, message, code="server_is_overloaded"))
                self._finish(work)
        else:
            self._start(work)
        self._wake()

    def lost(self, connection: wire.Connection) -> None:
        """Forgets a connection; a request that it still waited for is abandoned."""
        self._waiters = [waiter for waiter in self._waiters if waiter[0] is not connection]
        if connection.counted:
            self.tally.open_connections -= 1
        work, connection.work = connection.work, None
        if work is not None:
            self.tally.abandoned += 1
            self.tally.dropped()
            self._behaviour.limits.settle(work.decision.reserved_tokens, 0)
            if work.timer is not None:
                work.timer.cancel()
            self._discard(work)
        self._wake()

    def _discard(self, work: Work) -> None:
        for line in (self._queue, self._held):
            if work in line:
                line.remove(work)
        self._release_slot(work)

    # From the request to its reply.

    def _judge(self, head: wire.Head, body: bytes, now: float) -> tuple[Incoming | None, Decision]:
        headers = head.headers
        if self._behaviour.tokens and head.path.endswith(TOKEN_PATH):
            status, answer = self._behaviour.tokens.issue(headers.get("authorization", ""), body)
            return None, Decision(status, {}, msgspec.json.encode(answer))
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        key = bearer if scheme.lower() == "bearer" else headers.get("api-key") or headers.get("x-api-key")
        if not self._behaviour.authorised(key):
            message = "The API key is missing or wrong."
            return None, Decision(401, {}, replies.error_body(401, message, code="invalid_api_key"))
        self.tally.authorized += 1
        if head.method == "GET" and head.path.endswith("/models"):
            models = [{"id": name, "object": "model"} for name in self.config.models or ("echo",)]
            return None, Decision(200, {}, msgspec.json.encode({"object": "list", "data": models}))
        try:
            request = parse_request(head.path, body) if head.method == "POST" else None
        except ValueError as error:
            return None, Decision(400, {}, replies.error_body(400, str(error), kind="invalid_request_error"))
        if request is None:
            return None, Decision(404, {}, replies.error_body(404, f"No route for {head.method} {head.path[:80]}."))
        self.tally.understood(request)
        return request, self._behaviour.decide(request, now)

    def _start(self, work: Work) -> None:
        decision = work.decision
        if decision.admitted:
            work.serving = True
            self._serving += 1
            self.tally.peak_served = max(self.tally.peak_served, self._serving)
        if decision.hold:
            self._held.append(work)
        elif decision.latency_s > 0:
            work.timer = asyncio.get_running_loop().call_later(decision.latency_s, self._finish, work)
        else:
            self._finish(work)

    def _finish(self, work: Work) -> None:
        work.timer = None
        decision, request, connection = work.decision, work.request, work.connection
        fault = decision.fault
        if fault == "stall":
            return  # in flight, and in its slot, until the caller goes away
        now = self._clock()
        connection.work = None
        if request is not None and decision.admitted:
            used = decision.prompt_tokens + decision.completion_tokens
            self._behaviour.limits.settle(decision.reserved_tokens, used)
            if 200 <= decision.status < 300 and fault not in _UNBILLED_FAULTS:
                self.tally.bill(request, decision)
        headers = {"x-request-id": f"req-{self.tally.requests}", **decision.headers}
        if fault is None:
            self.tally.replied(decision.status, now)
            connection.reply(decision.status, headers, decision.body)
        else:
            self.tally.dropped()
            rule = decision.rule
            assert rule is not None
            connection.spoil(fault, headers, decision.body, rule.interval_s, rule.size_bytes)
        self._release_slot(work)
        self._wake()

    def _release_slot(self, work: Work) -> None:
        if work.serving:
            work.serving = False
            self._serving -= 1
        self._pump()

    def _pump(self) -> None:
        slots = self.config.slots
        while self._queue and (slots is None or self._serving < slots):
            self._start(self._queue.popleft())

    # The control channel: `client.EndpointControl` is its other end.

    def _control(self, connection: wire.Connection, head: wire.Head, body: bytes) -> None:
        what, _, query = head.path[len(CONTROL_PREFIX) :].partition("?")
        if what == "wait":
            self._wait(connection, dict(parse_qsl(query)))
            return
        tally = self.tally
        answers: dict[str, Callable[[], Any]] = {
            "stats": self._summary,
            "calls": lambda: tally.calls,
            "billed": lambda: tally.billed,
            "arrivals": lambda: list(tally.arrivals),
            "bodies": lambda: [raw.decode("utf-8", "replace") for raw in tally.bodies],
            "config": lambda: self.config,
            "configure": lambda: self.configure(msgspec.json.decode(body, type=EndpointConfig)),
            "reset": tally.reset,
            "release": self._release_held,
        }
        if what not in answers:
            connection.reply(404, {}, replies.error_body(404, f"There is no control {what!r}."))
            return
        try:
            answer = msgspec.json.encode(answers[what]())
        except (msgspec.MsgspecError, ValueError) as error:
            connection.reply(400, {}, replies.error_body(400, str(error)))
            return
        connection.reply(200, {}, answer)

    def _release_held(self) -> None:
        held, self._held = self._held, []
        for work in held:
            self._finish(work)

    def _wait(self, connection: wire.Connection, query: dict[str, str]) -> None:
        if not isinstance(self._summary().get(query["stat"]), int):
            connection.reply(400, {}, replies.error_body(400, f"There is no count {query['stat']!r}."))
            return
        timer = asyncio.get_running_loop().call_later(float(query["timeout_s"]), self._time_out, connection)
        self._waiters.append((connection, query, timer))
        self._wake()

    def _summary(self) -> dict[str, Any]:
        return self.tally.summary(queued=len(self._queue), serving=self._serving)

    def _wake(self) -> None:
        """Answers those who wait for a count, once it is there."""
        if not self._waiters:
            return
        stats = self._summary()
        for waiter in list(self._waiters):
            connection, query, timer = waiter
            value = stats[query["stat"]]
            if float(query.get("at_least", value)) <= value <= float(query.get("at_most", value)):
                timer.cancel()
                self._waiters.remove(waiter)
                connection.reply(200, {}, msgspec.json.encode(stats))

    def _time_out(self, connection: wire.Connection) -> None:
        self._waiters = [waiter for waiter in self._waiters if waiter[0] is not connection]
        connection.reply(408, {}, msgspec.json.encode(self._summary()))

"""Owns `FakeTransport`, a transport without a network. Does not know rules or limits: that is `FaultEndpoint`."""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from batch_infer.adapters.transport import HttpReply
from batch_infer.testing.behaviour import Behaviour
from batch_infer.testing.config import EndpointConfig
from batch_infer.testing.incoming import parse_request


@dataclass(frozen=True)
class FakeRequest:
    """One request that a `FakeTransport` was given."""

    url: str
    headers: Mapping[str, str] = field(repr=False)
    body: bytes
    timeout_s: float | None

    def json(self) -> Any:
        """The body, decoded."""
        return msgspec.json.decode(self.body)


Handler = Callable[[FakeRequest], "HttpReply | Awaitable[HttpReply]"]
Step = HttpReply | Exception | Handler


class FakeTransport:
    """A `Transport` in memory: plays a script, records what it was asked.

    Args:
        script: A function (plain or async) that answers every request; or steps, one for each request in order: a
            reply, an exception to raise, or a function. When the steps run out, and without a script, requests are
            answered as `FaultEndpoint` does.
    """

    def __init__(self, script: Iterable[Step] | Handler | None = None) -> None:
        self.requests: list[FakeRequest] = []
        """Everything that was asked, in order."""
        self.in_flight = 0
        self.peak_in_flight = 0
        self.closed = False
        self._handler = script if callable(script) else None
        self._steps: deque[Step] = deque() if script is None or callable(script) else deque(script)
        self._echo = Behaviour(EndpointConfig(), 0.0)

    async def post(self, url: str, headers: Mapping[str, str], body: bytes, *, timeout_s: float | None) -> HttpReply:
        """Answers with the script's next step."""
        request = FakeRequest(url, headers, body, timeout_s)
        self.requests.append(request)
        step = self._steps.popleft() if self._steps else self._handler or self._answer
        self.in_flight += 1
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)
        try:
            if isinstance(step, Exception):
                raise step
            if isinstance(step, HttpReply):
                return step
            reply = step(request)
            return await reply if inspect.isawaitable(reply) else reply
        finally:
            self.in_flight -= 1

    async def close(self) -> None:
        """Remembers that it was closed."""
        self.closed = True

    def _answer(self, request: FakeRequest) -> HttpReply:
        incoming = parse_request(request.url, request.body)
        if incoming is None:
            return HttpReply(404, {"content-type": "application/json"}, b'{"error":{"message":"No such route."}}')
        decision = self._echo.decide(incoming, 0.0)
        return HttpReply(decision.status, {"content-type": "application/json", **decision.headers}, decision.body)


def json_reply(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> HttpReply:
    """A reply whose body is `value` as JSON, for scripts."""
    return HttpReply(status, {"content-type": "application/json", **(headers or {})}, msgspec.json.encode(value))

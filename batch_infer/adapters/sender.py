"""Owns one attempt: encode, post, classify, decode, check the type. Does not retry, wait or count."""

from __future__ import annotations

from collections.abc import Sequence

from batch_infer.adapters.limit_headers import limits_in
from batch_infer.adapters.transport import Transport
from batch_infer.adapters.wire import Wire
from batch_infer.adapters.wire.status import error_of
from batch_infer.contract.endpoint import Endpoint
from batch_infer.contract.errors import EndpointError, RowRejected
from batch_infer.contract.limits import Limits
from batch_infer.contract.reply import Reply
from batch_infer.contract.request import Request
from batch_infer.contract.typed import TypeJson, TypeMismatch, read_reply

MIN_KEY_CHARS = 6
"""Shorter ones are stand-ins, such as `none`, that servers without keys are given, and occur in common words."""


class Sender:
    """The engine's `send`, made of a wire format and a transport.

    Args:
        endpoint: For its name and timeout.
        wire: The wire format of the endpoint's task.
        transport: The HTTP client.
        result_type: T; a reply whose text does not read as T is that row's error.

    Attributes:
        seen: What the endpoint's headers allow, as the latest reply that had any said; `None`: none has.
    """

    def __init__(self, endpoint: Endpoint, wire: Wire, transport: Transport, result_type: TypeJson) -> None:
        self._where = repr(endpoint.name)
        self._typed = None if endpoint.task == "embeddings" or result_type == "string" else result_type
        self._timeout_s = endpoint.timeout_s
        self._wire = wire
        self._transport = transport
        self.seen: Limits | None = None

    async def __call__(self, requests: Sequence[Request]) -> Sequence[Reply | EndpointError]:
        """Sends these rows as one request, once.

        Raises:
            EndpointError: nothing came back for any of them; its class says what may follow.
        """
        wire = self._wire
        reply = await self._transport.post(wire.url, wire.headers, wire.encode(requests), timeout_s=self._timeout_s)
        self.seen = limits_in(reply.headers) or self.seen
        if 200 <= reply.status < 300:
            try:
                results = wire.decode(reply.body, requests)
            except EndpointError as error:
                error.message = self._without_key(error.message)
                error.args = (error.message,)
                raise
            return results if self._typed is None else [self._check(result, self._typed) for result in results]
        body = self._without_key(reply.body.decode("utf-8", "replace")).encode()
        raise error_of(self._where, reply.status, reply.headers, body)

    def _without_key(self, text: str) -> str:
        """What an endpoint says, which may repeat the key that it was sent."""
        key = self._wire.headers.get("authorization", "").removeprefix("Bearer ")
        return text.replace(key, "[redacted]") if len(key) >= MIN_KEY_CHARS else text

    def _check(self, result: Reply | EndpointError, result_type: TypeJson) -> Reply | EndpointError:
        if isinstance(result, EndpointError) or (result.tool_calls and not result.text):
            return result
        try:
            for text in result.choices or (result.text or "",):
                read_reply(text, result_type)
        except TypeMismatch as error:
            return RowRejected(
                f"endpoint {self._where}: the reply does not have the type asked for: {error}",
                kind="type_mismatch",
                status=200,
                usage=result.usage,
            )
        return result

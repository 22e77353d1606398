"""Owns one attempt: encode, post, classify, decode, check the type. Does not retry, wait or count. On workers."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from batch_infer.adapters.providers import PROVIDERS
from batch_infer.adapters.providers.limit_headers import limits_in
from batch_infer.adapters.providers.wire import Wire
from batch_infer.adapters.transport import HttpReply, Transport
from batch_infer.adapters.transport.status import error_of
from batch_infer.contract.endpoint import Endpoint
from batch_infer.contract.errors import EndpointError, WrongReply
from batch_infer.contract.reply import Reply
from batch_infer.contract.reply_reader import ReplyReader
from batch_infer.contract.request import Request
from batch_infer.contract.result_types import TypeMismatch
from batch_infer.engine.ports import Sent

MIN_KEY_CHARS = 6
"""Characters of the shortest key that is taken out of messages. Shorter ones are stand-ins, such as `none`, which
servers without keys are given, and occur in common words."""


class Sender:
    """The engine's `send`, made of a wire format and a transport.

    Args:
        endpoint: For its name and timeout.
        wire: The wire format of the endpoint's task.
        transport: The HTTP client.
        reader: Reads replies; a text that it cannot read is that row's `WrongReply`.
        secrets: What must not appear in an error, although the endpoint repeats it.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        wire: Wire,
        transport: Transport,
        reader: ReplyReader,
        *,
        secrets: Sequence[str] = (),
    ) -> None:
        self._where = repr(endpoint.name)
        self._provider = PROVIDERS[endpoint.provider]
        self._secrets = [secret for secret in secrets if len(secret) >= MIN_KEY_CHARS]
        self._reader = None if endpoint.task == "embeddings" or reader.takes_any_text else reader
        self._is_chat = endpoint.task == "chat"
        self._timeout_s = endpoint.timeout_s
        self._wire = wire
        self._transport = transport

    async def __call__(self, requests: Sequence[Request]) -> Sent:
        """Sends these rows as one request, once.

        Raises:
            EndpointError: nothing came back for any of them; its class says what may follow, and its `limits` what the
                reply's headers allow.
        """
        wire = self._wire
        reply = await self._transport.post(wire.url, wire.headers, wire.encode(requests), timeout_s=self._timeout_s)
        limits = limits_in(reply.headers, self._provider.limit_headers)
        try:
            return Sent(self._results(reply, requests), limits)
        except EndpointError as error:
            error.limits = limits
            raise self._cleaned(error) from None

    def _results(self, reply: HttpReply, requests: Sequence[Request]) -> Sequence[Reply | EndpointError]:
        wire = self._wire
        if 200 <= reply.status < 300:
            results = wire.decode(reply.body, requests)
            results = [self._cleaned(one) if isinstance(one, EndpointError) else one for one in results]
            return results if self._reader is None else [self._check(result, self._reader) for result in results]
        body = self._without_key(reply.body.decode("utf-8", "replace")).encode()
        url = wire.url.partition("?")[0]
        raise error_of(self._where, reply.status, reply.headers, body, rules=self._provider.errors, url=url)

    def _cleaned(self, error: EndpointError) -> EndpointError:
        """The error without the key, also where the body had it in JSON's escapes."""
        error.message = self._without_key(error.message)
        error.args = (error.message,)
        return error

    def _without_key(self, text: str) -> str:
        """What an endpoint says, which may repeat the key that it was sent."""
        for secret in self._secrets:
            text = text.replace(secret, "[redacted]")
        return text

    def _check(self, result: Reply | EndpointError, reader: ReplyReader) -> Reply | EndpointError:
        if isinstance(result, EndpointError):
            return result
        try:
            reader.values(result)
            if not result.tool_calls and not all(result.choices or (result.text,)):
                reader.read("")  # a choice that says nothing is none of the type
        except TypeMismatch as mismatch:
            text = mismatch.text
            is_cut = result.finish_reason == "length"
            why = f"{mismatch}." + (
                " It was cut off by the token limit (finish_reason 'length'): raise max_tokens."
                if is_cut
                else reader.hint
            )
            message = result.message if text == result.text else None
            message = message or msgspec.json.encode({"role": "assistant", "content": text}).decode()
            return WrongReply(
                f"endpoint {self._where}: the reply is not of the form asked for: {why}",
                kind="type_mismatch",
                status=200,
                usage=result.usage,
                reply=msgspec.structs.replace(result, text=text, message=message),
                correction=reader.correction(mismatch) if self._is_chat and not is_cut else None,
            )
        return result

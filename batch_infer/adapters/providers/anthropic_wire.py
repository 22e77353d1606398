"""Owns Anthropic's wire format, `/v1/messages`: the body of a request, and what a reply says. Pure bytes in and out.

Does not convert messages and parameters: `anthropic_request` does.

On workers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from batch_infer.adapters.providers.anthropic_request import conversation_of, parameters_of
from batch_infer.adapters.providers.reading import count, no_text, read_leniently
from batch_infer.adapters.providers.request_messages import messages_of
from batch_infer.adapters.providers.wire import Speaker, Wire
from batch_infer.adapters.transport.status import error_in_reply
from batch_infer.contract.endpoint import Endpoint
from batch_infer.contract.errors import EndpointError
from batch_infer.contract.reply import Reply, ToolCall, Usage
from batch_infer.contract.request import Request

VERSION = "2026-10-21"
VERSION_WITH_SAMPLING = "2023-06-01"
SAMPLING = frozenset({"temperature", "top_p", "top_k"})
"""Parameters that Anthropic took out of its newest API version: with one of them the earlier version is asked, which
older models still need them in. Source: "Migrating to API version 2026-10-21", Claude API documentation."""
PATH = "/v1/messages"
FINISH_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
"""Anthropic's `stop_reason` in the contract's words; another one passes as it is."""

_encode = msgspec.json.Encoder().encode
_NULL = msgspec.Raw(b"null")


class _Details(msgspec.Struct):
    thinking_tokens: int | None = None


class _Usage(msgspec.Struct):
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    output_tokens_details: _Details | None = None


class _Block(msgspec.Struct):
    type: str | None = None
    text: str | None = None
    thinking: str | None = None
    id: str | None = None
    name: str | None = None
    input: msgspec.Raw = msgspec.Raw(b"{}")


class _StopDetails(msgspec.Struct):
    explanation: str | None = None


class _Reply(msgspec.Struct):
    content: msgspec.Raw = _NULL
    model: str | None = None
    stop_reason: str | None = None
    stop_details: _StopDetails | None = None
    usage: msgspec.Raw = _NULL
    error: Any = None


_reply = msgspec.json.Decoder(_Reply)
_blocks = msgspec.json.Decoder(list[_Block] | None)
_usage = msgspec.json.Decoder(_Usage)


class AnthropicWire(Wire):
    """A Claude model. `max_tokens`, which Anthropic requires, is 1,024 where `modelParameters` names none.

    `Reply.message` is the whole assistant message, `{"role":"assistant","content":[…]}`, its content byte for byte
    (signatures of thinking blocks must come back unmodified in the next turn).
    """

    def __init__(
        self,
        endpoint: Endpoint,
        provider: Speaker,
        *,
        base_url: str,
        parameters: Mapping[str, Any],
        response_format: Mapping[str, Any] | None,
        api_key: str | None,
    ) -> None:
        self._name = repr(endpoint.name)
        self._rules = provider.errors
        self.url = base_url.rstrip("/").removesuffix("/v1") + PATH
        self.headers = {
            "content-type": "application/json",
            "accept": "application/json",
            "anthropic-version": endpoint.api_version
            or (VERSION_WITH_SAMPLING if SAMPLING & set(parameters) else VERSION),
        }
        if api_key is not None:
            self.headers.update(provider.credentials(api_key))
        shared = {"model": endpoint.model, **parameters_of(parameters, response_format)}
        self._system = shared.pop("system", None)
        self._head = _encode(shared)[:-1] + b","

    def encode(self, requests: Sequence[Request]) -> bytes:
        """See `Wire.encode`."""
        (request,) = requests
        messages = messages_of(request)
        if self._system:
            messages.insert(0, {"role": "system", "content": self._system})
        system, turns = conversation_of(messages)
        rest = {"messages": turns}
        if system:
            rest = {"system": system, **rest}
        return self._head + _encode(rest)[1:]

    def decode(self, body: bytes, requests: Sequence[Request]) -> list[Reply | EndpointError]:  # noqa: ARG002
        """See `Wire.decode`."""
        return [read_leniently(self._name, body, self._answer)]

    def _answer(self, body: bytes) -> Reply | EndpointError:
        reply = _reply.decode(body)
        usage = _read_usage(reply.usage)
        if reply.error is not None:
            raise error_in_reply(self._name, reply.error, self._rules)
        blocks = _blocks.decode(reply.content) or []
        text = "".join(block.text or "" for block in blocks if block.type == "text")
        thoughts = [block.thinking for block in blocks if block.type == "thinking" and block.thinking]
        calls = tuple(
            ToolCall(block.id, block.name, bytes(block.input).decode()) for block in blocks if block.type == "tool_use"
        )
        finish_reason = FINISH_REASONS.get(reply.stop_reason or "", reply.stop_reason)
        if finish_reason == "content_filter" or (not text and not calls):
            explanation = reply.stop_details.explanation if reply.stop_details is not None else None
            return no_text(self._name, finish_reason, explanation, usage)
        return Reply(
            text=text,
            finish_reason=finish_reason,
            reasoning="\n".join(thoughts) or None,
            tool_calls=calls,
            message='{"role":"assistant","content":' + bytes(reply.content).decode() + "}",
            model=reply.model,
            usage=usage,
        )


def _read_usage(raw: msgspec.Raw) -> Usage:
    """Anthropic counts what it read from and wrote to its cache apart from `input_tokens`; all of it is the prompt."""
    try:
        usage = _usage.decode(raw)
    except msgspec.DecodeError:
        return Usage()
    fresh, completion = count(usage.input_tokens), count(usage.output_tokens)
    cached, written = count(usage.cache_read_input_tokens), count(usage.cache_creation_input_tokens)
    prompt = None if fresh is None else fresh + (cached or 0) + (written or 0)
    total = None if prompt is None else prompt + (completion or 0)
    details = usage.output_tokens_details
    return Usage(prompt, completion, total, cached, count(details.thinking_tokens) if details is not None else None)

"""Owns the OpenAI-compatible wire format: chat completions, text completions, embeddings. Pure bytes in and out.

On workers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from batch_infer.adapters.providers.assistant_message import Message
from batch_infer.adapters.providers.embeddings import read_embeddings
from batch_infer.adapters.providers.reading import empty_reply, no_text, read_leniently
from batch_infer.adapters.providers.request_messages import messages_json
from batch_infer.adapters.providers.usage import read_usage
from batch_infer.adapters.providers.wire import Speaker, Wire
from batch_infer.adapters.transport.status import error_in_reply
from batch_infer.contract.endpoint import Endpoint
from batch_infer.contract.errors import EndpointError
from batch_infer.contract.reply import Reply
from batch_infer.contract.request import Request

PATHS = {"chat": "/chat/completions", "completions": "/completions", "embeddings": "/embeddings"}
STOPPED_ON_PURPOSE = frozenset({"tool_calls", "function_call"})

_encode = msgspec.json.Encoder().encode
_ABSENT = msgspec.Raw(b"null")


class _Choice(msgspec.Struct):
    message: msgspec.Raw = _ABSENT
    text: str | None = None
    finish_reason: str | None = None


class _Completion(msgspec.Struct):
    choices: list[_Choice] | None = None
    model: str | None = None
    usage: msgspec.Raw = _ABSENT
    error: Any = None


_completion = msgspec.json.Decoder(_Completion)
_message = msgspec.json.Decoder(Message)


class OpenAIWire(Wire):
    """One task of one OpenAI-compatible endpoint. Other providers of the same bodies override the hooks below.

    Args:
        endpoint: Whose model and task.
        provider: Its key header and error codes.
        base_url: The endpoint's address, resolved (a local server's is known only at run time).
        parameters: `modelParameters`, passed through.
        response_format: The `response_format` object, or `None`.
        api_key: The secret itself, or `None`.
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
        self._task = endpoint.task
        self._rules = provider.errors
        self.url = self._address(endpoint, base_url.rstrip("/"))
        self.headers = {"content-type": "application/json", "accept": "application/json"}
        if api_key is not None:
            self.headers.update(provider.credentials(api_key))
        shared: dict[str, Any] = {**self._model(endpoint), **parameters}
        if response_format is not None:
            shared["response_format"] = response_format
        # Every body of this call begins alike; only the last member differs.
        self._head = _encode(shared)[:-1] + (b"," if shared else b"")

    # Hooks

    def _address(self, endpoint: Endpoint, base_url: str) -> str:
        return base_url + PATHS[endpoint.task]

    def _model(self, endpoint: Endpoint) -> dict[str, str]:
        """The members of the body that name the model."""
        return {"model": endpoint.model}

    def encode(self, requests: Sequence[Request]) -> bytes:
        """See `Wire.encode`."""
        if self._task == "embeddings":
            return self._head + b'"input":' + _encode([request.content for request in requests]) + b"}"
        (request,) = requests
        if self._task == "completions":
            return self._head + b'"prompt":' + _encode(request.content) + b"}"
        return self._head + b'"messages":' + messages_json(request) + b"}"

    def decode(self, body: bytes, requests: Sequence[Request]) -> list[Reply | EndpointError]:
        """See `Wire.decode`."""
        if self._task == "embeddings":
            return read_leniently(
                self._name, body, lambda data: read_embeddings(self._name, data, requests, self._rules)
            )
        return [read_leniently(self._name, body, self._answer)]

    def _answer(self, body: bytes) -> Reply | EndpointError:
        reply = _completion.decode(body)
        usage = read_usage(reply.usage)
        if not reply.choices:
            if reply.error is not None:
                raise error_in_reply(self._name, reply.error, self._rules)
            return empty_reply(self._name, "it holds no choices", usage)
        first = reply.choices[0]
        raw = bytes(first.message)
        message = _message.decode(raw) if raw != b"null" else Message()
        text, reasoning = message.said(first.finish_reason)
        if self._task == "completions":
            text = first.text
        calls = message.calls()
        if not text and not calls and (message.refusal or first.finish_reason not in STOPPED_ON_PURPOSE):
            return no_text(self._name, first.finish_reason, message.refusal, usage)
        choices: tuple[str, ...] = ()
        if len(reply.choices) > 1:
            choices = tuple(self._choice_text(choice) or "" for choice in reply.choices)
        return Reply(
            text=text or "",
            choices=choices,
            finish_reason=first.finish_reason,
            reasoning=reasoning,
            tool_calls=calls,
            message=raw.decode() if raw != b"null" else None,
            model=reply.model,
            usage=usage,
        )

    def _choice_text(self, choice: _Choice) -> str | None:
        if self._task == "completions" or choice.message == _ABSENT:
            return choice.text
        return _message.decode(choice.message).said(choice.finish_reason)[0]

"""Owns the OpenAI-compatible wire format: chat completions, text completions, embeddings. Pure bytes in and out."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from batch_infer.adapters.wire import Wire
from batch_infer.adapters.wire.messages import messages_json
from batch_infer.adapters.wire.status import error_in_reply
from batch_infer.contract.endpoint import Endpoint
from batch_infer.contract.errors import Ambiguous, EndpointError, RowRejected
from batch_infer.contract.reply import Reply, ToolCall, Usage, apportion
from batch_infer.contract.request import Request

PATHS = {"chat": "/chat/completions", "completions": "/completions", "embeddings": "/embeddings"}
STOPPED_ON_PURPOSE = frozenset({"tool_calls", "function_call"})

_encode = msgspec.json.Encoder().encode
_ABSENT = msgspec.Raw(b"null")


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _CompletionDetails(msgspec.Struct):
    reasoning_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: Any = None


class _ToolCall(msgspec.Struct):
    id: str | None = None
    function: _Function | None = None


class _Message(msgspec.Struct):
    content: str | list[Any] | None = None
    reasoning_content: str | None = None
    tool_calls: list[_ToolCall] | None = None
    refusal: str | None = None


class _Choice(msgspec.Struct):
    message: msgspec.Raw = _ABSENT
    text: str | None = None
    finish_reason: str | None = None


class _Completion(msgspec.Struct):
    choices: list[_Choice] | None = None
    model: str | None = None
    usage: msgspec.Raw = _ABSENT
    error: Any = None


class _Vector(msgspec.Struct):
    embedding: list[float] | str
    index: int | None = None


class _Embeddings(msgspec.Struct):
    data: list[_Vector] | None = None
    model: str | None = None
    usage: msgspec.Raw = _ABSENT
    error: Any = None


_completion = msgspec.json.Decoder(_Completion)
_message = msgspec.json.Decoder(_Message)
_embeddings = msgspec.json.Decoder(_Embeddings)
_usage = msgspec.json.Decoder(_Usage)


class OpenAIWire(Wire):
    """One task of one OpenAI-compatible endpoint.

    Args:
        endpoint: Whose model and task.
        base_url: The endpoint's address, resolved (a local server's is known only at run time).
        parameters: `modelParameters`, passed through.
        response_format: The `response_format` object, or `None`.
        api_key: The secret itself, or `None`.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        base_url: str,
        parameters: Mapping[str, Any],
        response_format: Mapping[str, Any] | None,
        api_key: str | None,
    ) -> None:
        self._name = repr(endpoint.name)
        self._task = endpoint.task
        self.url = base_url.rstrip("/") + PATHS[endpoint.task]
        self.headers = {"content-type": "application/json", "accept": "application/json"}
        if api_key is not None:
            self.headers["authorization"] = f"Bearer {api_key}"
        shared: dict[str, Any] = {"model": endpoint.model, **parameters}
        if response_format is not None:
            shared["response_format"] = response_format
        # Every body of this call begins alike; only the last member differs.
        self._head = _encode(shared)[:-1] + b","

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
        try:
            try:
                return self._read(body, requests)
            except msgspec.DecodeError:
                mended = _mended(body)
                if mended is None:
                    raise
                return self._read(mended, requests)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Ambiguous(
                f"endpoint {self._name}: its 200 reply cannot be read ({_why(error)}). It may have been billed. "
                "If it persists, check that base_url leads to an OpenAI-compatible API.",
                kind="malformed_reply",
                status=200,
            ) from None

    def _read(self, body: bytes, requests: Sequence[Request]) -> list[Reply | EndpointError]:
        if self._task == "embeddings":
            return self._vectors(_embeddings.decode(body), requests)
        return [self._answer(_completion.decode(body))]

    def _answer(self, reply: _Completion) -> Reply | EndpointError:
        usage = _read_usage(reply.usage)
        if not reply.choices:
            if reply.error is not None:
                raise error_in_reply(self._name, reply.error)
            return self._empty("it holds no choices", usage)
        first = reply.choices[0]
        raw = bytes(first.message)
        message = _message.decode(raw) if raw != b"null" else _Message()
        text = first.text if self._task == "completions" else _text_of(message.content)
        reasoning = message.reasoning_content or _reasoning_of(message.content)
        calls = tuple(_call(call) for call in message.tool_calls or ())
        if not text and not calls:
            if first.finish_reason == "content_filter":
                return RowRejected(
                    f"endpoint {self._name}: the reply was withheld by the content filter",
                    kind="content_filter", status=200, usage=usage,
                )  # fmt: skip
            if message.refusal:
                return RowRejected(
                    f"endpoint {self._name}: the model refused: {message.refusal[:200]}",
                    kind="refusal", status=200, usage=usage,
                )  # fmt: skip
            if first.finish_reason == "length":
                return self._empty("the token limit was reached before any text; raise max_tokens", usage)
            if first.finish_reason not in STOPPED_ON_PURPOSE:
                return self._empty("it holds no text", usage)
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
        return _text_of(_message.decode(choice.message).content)

    def _vectors(self, reply: _Embeddings, requests: Sequence[Request]) -> list[Reply | EndpointError]:
        data = reply.data
        if data is None:
            if reply.error is not None:
                raise error_in_reply(self._name, reply.error)
            data = []
        vectors: dict[int, list[float]] = {}
        for position, item in enumerate(data):
            index = position if item.index is None else item.index
            if index in vectors or not 0 <= index < len(requests):
                raise self._bad_pack(f"the index {index} is repeated or out of range")
            vectors[index] = item.embedding if isinstance(item.embedding, list) else _floats(item.embedding)
        if len(vectors) != len(requests):
            raise self._bad_pack(f"{len(requests)} texts were sent and {len(vectors)} vectors came back")
        if len({len(vector) for vector in vectors.values() if vector}) > 1:
            raise self._bad_pack("its vectors differ in length")
        shares = apportion(_read_usage(reply.usage), [request.prompt_tokens for request in requests])
        return [
            Reply(embedding=vectors[i], model=reply.model, usage=share)
            if vectors[i]
            else self._empty("its vector is empty", share)
            for i, share in enumerate(shares)
        ]

    def _bad_pack(self, what: str) -> Ambiguous:
        return Ambiguous(
            f"endpoint {self._name}: its embeddings reply cannot be matched with its request: {what}. "
            "It may have been billed.",
            kind="malformed_reply",
            status=200,
        )

    def _empty(self, what: str, usage: Usage) -> RowRejected:
        return RowRejected(
            f"endpoint {self._name}: an empty reply: {what}", kind="empty_reply", status=200, usage=usage
        )


def _text_of(content: str | list[Any] | None) -> str | None:
    if not isinstance(content, list):
        return content
    texts = [block["text"] for block in content if isinstance(block, dict) and isinstance(block.get("text"), str)]
    return "".join(texts) if texts else None


def _reasoning_of(content: str | list[Any] | None) -> str | None:
    if not isinstance(content, list):
        return None
    summaries = [
        part["text"]
        for block in content
        if isinstance(block, dict) and block.get("type") == "reasoning" and isinstance(block.get("summary"), list)
        for part in block["summary"]
        if isinstance(part, dict) and isinstance(part.get("text"), str)
    ]
    return "\n".join(summaries) if summaries else None


def _call(call: _ToolCall) -> ToolCall:
    function = call.function or _Function()
    arguments = function.arguments
    if arguments is not None and not isinstance(arguments, str):
        arguments = _encode(arguments).decode()
    return ToolCall(call.id, function.name, arguments)


def _read_usage(raw: msgspec.Raw) -> Usage:
    """What the endpoint says it billed; unknown rather than wrong where that is missing, malformed or negative."""
    try:
        usage = _usage.decode(raw)
    except msgspec.DecodeError:
        return Usage()
    prompt, completion, total = _count(usage.prompt_tokens), _count(usage.completion_tokens), _count(usage.total_tokens)
    if total is None and prompt is not None:
        total = prompt + (completion or 0)
    in_prompt, in_completion = usage.prompt_tokens_details, usage.completion_tokens_details
    cached = _count(in_prompt.cached_tokens) if in_prompt is not None else None
    reasoning = _count(in_completion.reasoning_tokens) if in_completion is not None else None
    return Usage(prompt, completion, total, cached, reasoning)


def _count(value: int | None) -> int | None:
    return value if value is not None and value >= 0 else None


def _floats(text: str) -> list[float]:
    """A base64 embedding: little-endian 32-bit floats."""
    try:
        data = base64.b64decode(text, validate=True)
        return list(struct.unpack(f"<{len(data) // 4}f", data))
    except (ValueError, struct.error):
        raise msgspec.DecodeError("an embedding is neither numbers nor base64 of 32-bit floats") from None


def _mended(body: bytes) -> bytes | None:
    """A body that Python's own lenient reader takes, as strict JSON; `None` where that would change nothing.

    Such a reply is paid for, so it is read: `NaN` and `Infinity`, which Python servers write, become null, and half a
    surrogate pair, which a token limit can cut off, becomes U+FFFD.
    """
    if not any(mark in body for mark in (b"NaN", b"Infinity", b"\\ud", b"\\uD")):
        return None
    try:
        value = json.loads(body, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return None
    text = json.dumps(value, ensure_ascii=False)
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


def _why(error: Exception) -> str:
    return str(error).split("\n", 1)[0][:120]

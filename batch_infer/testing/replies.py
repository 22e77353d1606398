"""Owns the bodies that the fault endpoint sends: correct ones, and each way of spoiling them. Pure; no sockets.

Replies are deterministic, so that a test can recompute them: `chat_text`, `embedding` and `count_tokens` are the
functions that the endpoint itself uses.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import msgspec

Api = Literal["chat", "completions", "embeddings", "messages", "custom"]

ECHO_CHARS = 40
"""Characters of the prompt that an echo repeats."""

Body = tuple[int, dict[str, str], bytes]
"""Status, headers besides `content-type` and `content-length`, body."""


def count_tokens(text: str) -> int:
    """Tokens that the fault endpoint bills for `text`: its whitespace-separated words, at least 1."""
    return len(text.split()) or 1


def chat_text(prompt: str, reply_words: int | None = None) -> str:
    """The fault endpoint's answer to `prompt`: `echo: ` and its first 40 characters, padded to `reply_words`."""
    text = f"echo: {prompt[:ECHO_CHARS]}"
    if reply_words is None:
        return text
    return text + " word" * max(0, reply_words - len(text.split()))


def embedding(text: str, dimensions: int = 16) -> list[float]:
    """A unit-length vector derived from a hash of `text`."""
    raw = struct.unpack(
        f"<{dimensions}h", hashlib.shake_256(text.encode("utf-8", "surrogatepass")).digest(2 * dimensions)
    )
    norm = math.sqrt(sum(value * value for value in raw)) or 1.0
    return [value / norm for value in raw]


def error_body(status: int, message: str, *, kind: str | None = None, code: str | None = None) -> bytes:
    """An error in OpenAI's format."""
    error = {"message": message, "type": kind or f"http_{status}", "param": None, "code": code}
    return msgspec.json.encode({"error": error})


def chat_reply(request: Mapping[str, Any], prompt_tokens: int, text: str, number: int) -> dict[str, Any]:
    """A chat completion; with a JSON `response_format` the text becomes the smallest instance of the schema."""
    form = request.get("response_format")
    if isinstance(form, dict) and form.get("type") in ("json_object", "json_schema"):
        schema = (form.get("json_schema") or {}).get("schema") or {"type": "object", "properties": {"echo": {}}}
        text = msgspec.json.encode(instance_of(schema, text)).decode()
    n = request.get("n") or 1
    choices = [
        {"index": i, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"} for i in range(n)
    ]
    return {
        "id": f"chatcmpl-{number}",
        "object": "chat.completion",
        "created": 0,
        "model": request.get("model"),
        "choices": choices,
        "usage": usage(prompt_tokens, n * count_tokens(text)),
    }


def completion_reply(request: Mapping[str, Any], prompt_tokens: int, text: str, number: int) -> dict[str, Any]:
    """A completion in the older format."""
    n = request.get("n") or 1
    return {
        "id": f"cmpl-{number}",
        "object": "text_completion",
        "created": 0,
        "model": request.get("model"),
        "choices": [{"index": i, "text": text, "finish_reason": "stop", "logprobs": None} for i in range(n)],
        "usage": usage(prompt_tokens, n * count_tokens(text)),
    }


def embeddings_reply(request: Mapping[str, Any], inputs: Sequence[str], dimensions: int) -> dict[str, Any]:
    """One vector for each input, in order; base64 when the request asks for it."""
    vectors = [embedding(text, request.get("dimensions") or dimensions) for text in inputs]
    encode: Callable[[list[float]], Any] = _as_base64 if request.get("encoding_format") == "base64" else list
    prompt_tokens = sum(map(count_tokens, inputs))
    return {
        "object": "list",
        "model": request.get("model"),
        "data": [{"object": "embedding", "index": i, "embedding": encode(v)} for i, v in enumerate(vectors)],
        "usage": {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens},
    }


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """The `usage` object of chat and completions."""
    total = prompt_tokens + completion_tokens
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": total}


def _as_base64(vector: Sequence[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def instance_of(schema: Mapping[str, Any], text: str, root: Mapping[str, Any] | None = None) -> Any:
    """A small value that satisfies a JSON schema; strings are `text`. Covers what structured outputs allow."""
    root = schema if root is None else root
    if "$ref" in schema:
        target: Any = root
        for part in schema["$ref"].lstrip("#/").split("/"):
            target = target[part]
        return instance_of(target, text, root)
    if "const" in schema or "enum" in schema:
        return schema["const"] if "const" in schema else schema["enum"][0]
    union = schema.get("anyOf") or schema.get("oneOf")
    if union:
        return instance_of(union[0], text, root)
    kind = schema.get("type", "string")
    kind = kind[0] if isinstance(kind, list) else kind
    if kind == "object":
        return {name: instance_of(sub, text, root) for name, sub in schema.get("properties", {}).items()}
    if kind == "array":
        return [instance_of(schema.get("items", {}), text, root)] * schema.get("minItems", 1)
    return {"integer": 1, "number": 1.5, "boolean": True, "null": None}.get(kind, text)


def spoil(fault: str, reply: dict[str, Any]) -> Body:
    """The reply with a body fault applied.

    Args:
        fault: A member of `config.BODY_FAULTS`.
        reply: A correct reply; it is changed in place.

    Raises:
        ValueError: the fault does not apply to this kind of reply.
    """
    if fault in _WHOLE:
        return _WHOLE[fault](reply)
    if fault in _FIELDS:
        _FIELDS[fault](reply)
    elif "choices" in reply and fault in _CHOICE:
        for choice in reply["choices"]:
            _CHOICE[fault](choice)
    elif "data" in reply and fault in _VECTORS:
        _VECTORS[fault](reply["data"])
    elif "content" in reply and fault in _CHOICE:
        _of_claude(reply, fault)
    elif "predictions" in reply and fault == "short_batch":
        reply["predictions"].pop()
    else:
        raise ValueError(f"The fault {fault!r} does not apply to this kind of request.")
    return 200, {}, msgspec.json.encode(reply)


def _always(headers: dict[str, str], body: bytes, status: int = 200) -> Callable[[dict[str, Any]], Body]:
    return lambda reply: (status, headers, body)  # noqa: ARG005 - whatever the reply would have been


def _truncated(reply: dict[str, Any]) -> Body:
    whole = msgspec.json.encode(reply)
    return 200, {}, whole[: len(whole) // 2]


def _in_text(escape: bytes) -> Callable[[dict[str, Any]], Body]:
    """Puts raw bytes behind the first colon of an echo; the `model` of an embeddings reply, which has no echo."""

    def apply(reply: dict[str, Any]) -> Body:
        whole = msgspec.json.encode(reply)
        if b"echo:" in whole:
            return 200, {}, whole.replace(b"echo:", b"echo:" + escape, 1)
        return 200, {}, whole.replace(b'"model":"', b'"model":"' + escape, 1)

    return apply


def _nan_usage(reply: dict[str, Any]) -> Body:
    whole = msgspec.json.encode(reply)
    for name in (b'"prompt_tokens":', b'"input_tokens":'):
        whole = whole.replace(name, name + b'NaN,"was":', 1)
    return 200, {}, whole


def _text(text: str | None, finish_reason: str) -> Callable[[dict[str, Any]], None]:
    def apply(choice: dict[str, Any]) -> None:
        if "message" in choice:
            choice["message"]["content"] = text
        else:
            choice["text"] = text
        choice["finish_reason"] = finish_reason

    return apply


def _of_claude(reply: dict[str, Any], fault: str) -> None:
    text, reason = {
        "null_content": ("", "end_turn"),
        "content_filter": ("", "refusal"),
        "length": ("echo: cut", "max_tokens"),
    }[fault]
    reply["content"] = [{"type": "text", "text": text}] if text else []
    reply["stop_reason"] = reason


def _negative_usage(reply: dict[str, Any]) -> None:
    reply["usage"] = dict.fromkeys(reply["usage"], -5)


def _duplicate_index(rows: list[dict[str, Any]]) -> None:
    if len(rows) == 1:
        rows.append(dict(rows[0]))
    rows[-1]["index"] = rows[0]["index"]


def _missing_index(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        del row["index"]


def _wrong_dimension(rows: list[dict[str, Any]]) -> None:
    rows[-1]["embedding"] = rows[-1]["embedding"][:-1]


def _to_base64(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        row["embedding"] = _as_base64(row["embedding"])


_HTML = b"<!doctype html><html><head><title>Gateway</title></head><body><h1>All is well</h1></body></html>"

_WHOLE: dict[str, Callable[[dict[str, Any]], Body]] = {
    "truncated_json": _truncated,
    "html_200": _always({"content-type": "text/html"}, _HTML),
    "empty_body": _always({}, b""),
    "invalid_utf8": _in_text(b"\xff\xfe"),
    "lone_surrogate": _in_text(b"\\ud83d"),
    "nan_usage": _nan_usage,
    "error_in_200": _always({}, error_body(500, "The model crashed.", kind="server_error")),
    "redirect": _always({"location": "/v1/redirected"}, b"", 307),
    "wrong_content_type": lambda reply: (200, {"content-type": "text/plain"}, msgspec.json.encode(reply)),
    "gzip": lambda reply: (200, {"content-encoding": "gzip"}, gzip.compress(msgspec.json.encode(reply), 1)),
}

_FIELDS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "missing_usage": lambda reply: reply.pop("usage"),
    "negative_usage": _negative_usage,
    "empty_choices": lambda reply: next(
        reply[name] for name in ("choices", "data", "content", "predictions") if name in reply
    ).clear(),
}

_CHOICE: dict[str, Callable[[dict[str, Any]], None]] = {
    "null_content": _text(None, "stop"),
    "content_filter": _text(None, "content_filter"),
    "length": _text("echo: cut", "length"),
}

_VECTORS: dict[str, Callable[[list[dict[str, Any]]], Any]] = {
    "short_batch": lambda rows: rows.pop(),
    "out_of_order": lambda rows: rows.reverse(),
    "duplicate_index": _duplicate_index,
    "missing_index": _missing_index,
    "wrong_dimension": _wrong_dimension,
    "base64": _to_base64,
}

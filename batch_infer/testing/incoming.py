"""Owns reading a request that the fault endpoint gets: which API it is for, and its prompts. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import msgspec

from batch_infer.testing import replies


class Incoming(msgspec.Struct):
    """A request as far as the decision depends on it."""

    api: replies.Api
    body: dict[str, Any]
    prompts: tuple[str, ...]
    """The last user message's text, a completion's prompts, an embeddings request's inputs, or records as JSON."""
    prompt_tokens: int


def parse_request(path: str, raw: bytes) -> Incoming | None:
    """Reads a request; `None` when there is no such endpoint.

    The path decides by its end, so that deployments with other prefixes work; `…/invocations` by the body's fields.

    Raises:
        ValueError: the body is not a JSON object, or lacks what the endpoint needs.
    """
    tail = path.partition("?")[0].rstrip("/")
    by_path: replies.Api | None = next((api for end, api in _PATHS.items() if tail.endswith(end)), None)
    if by_path is None and not tail.endswith("/invocations"):
        return None
    try:
        body = msgspec.json.decode(raw, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"The body is not a JSON object: {error}") from None
    by_field: list[replies.Api] = [each for field, each in _FIELDS.items() if field in body]
    api: replies.Api = "completions"
    if by_path is not None:
        api = by_path
    elif by_field:
        api = by_field[0]
    prompts = _PROMPTS[api](body)
    return Incoming(api, body, prompts, sum(map(replies.count_tokens, prompts)))


def _chat_prompts(body: Mapping[str, Any]) -> tuple[str, ...]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ValueError("'messages' is missing or empty.")
    for message in reversed(messages):
        if isinstance(message, dict) and message.get("role") == "user":
            content = message.get("content")
            if isinstance(content, list):
                content = "".join(part.get("text", "") for part in content if isinstance(part, dict))
            return (str(content or ""),)
    return ("",)


def _claude_prompts(body: Mapping[str, Any]) -> tuple[str, ...]:
    if not isinstance(body.get("max_tokens"), int):
        raise ValueError("max_tokens: Field required")  # noqa: TRY004 - of the body, whatever the field holds
    roles = [message.get("role") for message in body.get("messages") or () if isinstance(message, dict)]
    if not set(roles) <= {"user", "assistant"}:
        raise ValueError('messages: roles are "user" and "assistant"; a system prompt is the parameter "system".')
    return _chat_prompts(body)


def _listed(field: str) -> Any:
    def read(body: Mapping[str, Any]) -> tuple[str, ...]:
        value = body.get(field)
        if isinstance(value, str):
            return (value,)
        if not isinstance(value, list) or not value:
            raise ValueError(f"'{field}' is missing or empty.")
        return tuple(item if isinstance(item, str) else str(item) for item in value)

    return read


def _records(body: Mapping[str, Any]) -> tuple[str, ...]:
    records = body.get("dataframe_records")
    if not isinstance(records, list) or not records or not all(isinstance(record, dict) for record in records):
        raise ValueError("'dataframe_records' is missing, empty, or no list of objects.")
    return tuple(json.dumps(record, sort_keys=True, ensure_ascii=False) for record in records)


_PATHS: dict[str, replies.Api] = {
    "/chat/completions": "chat",
    "/completions": "completions",
    "/embeddings": "embeddings",
    "/v1/messages": "messages",
}
_FIELDS: dict[str, replies.Api] = {"messages": "chat", "input": "embeddings", "dataframe_records": "custom"}
_PROMPTS: dict[replies.Api, Any] = {
    "chat": _chat_prompts,
    "completions": _listed("prompt"),
    "embeddings": _listed("input"),
    "messages": _claude_prompts,
    "custom": _records,
}

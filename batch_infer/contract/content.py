"""Owns the forms that a row's request may have, and what each becomes: what is sent, and what its key is made of.

    STRING                          the prompt; to a chat endpoint, a JSON array of messages is these messages
    ARRAY<STRUCT<role, content>>    messages; `content` is text, or blocks such as STRUCT<type, text>
    ARRAY<STRING>                   messages, each as JSON: `message` of an earlier call fits between others
    JSON of a STRUCT or MAP         the inputs of a custom model

JSON that comes as text is sent as it is written, byte for byte: a signature inside it stays valid. Only what is hashed
is made canonical. Does not hash or send.

On driver and workers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

_canonical = msgspec.json.Encoder(order="deterministic", decimal_format="number")


class Content(NamedTuple):
    """One row's request, read."""

    sent: str | bytes
    """A prompt, or JSON."""
    hashed: str | bytes
    """The same for requests that mean the same."""
    problem: str = ""
    """Why it cannot be sent."""


def read_content(value: Any, task: str) -> Content | None:
    """A value of the request column; `None` for a NULL request, and for messages of which one is NULL."""
    if value is None:
        return None
    if isinstance(value, str):
        if task == "custom":
            return Content(value.encode(), canonical_json(value))
        messages = messages_in(value) if task == "chat" else None
        return Content(value, value) if messages is None else Content(value.encode(), canonical_messages(messages))
    if not value:
        return Content(b"[]", b"[]", "the request is an empty array: it needs at least one message")
    if any(item is None for item in value):
        return None
    if not isinstance(value[0], str):
        canonical = canonical_messages(value)
        return Content(canonical, canonical)
    written = f"[{','.join(value)}]"
    messages = messages_in(written)
    if messages is None or len(messages) != len(value):
        bad = next((i for i, item in enumerate(value) if messages_in(f"[{item}]") is None), 0)
        said = f"the request's element {bad} is not a message as JSON, such as " + '{"role": "user", "content": "…"}'
        return Content(written.encode(), written.encode(), f"{said}. Write to_json(named_struct('role', …)).")
    return Content(written.encode(), canonical_messages(messages))


def messages_in(text: str) -> list[dict[str, Any]] | None:
    """The messages, where a text begins with `[` and is a JSON array of objects that all have a `role`; else `None`."""
    if not text.startswith("["):
        return None
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return None
    if not value or not all(isinstance(message, dict) and "role" in message for message in value):
        return None
    return list(value)


def canonical_messages(messages: Sequence[Mapping[str, Any]]) -> bytes:
    """Messages as canonical JSON: the same messages always give the same bytes, and so the same key.

    A NULL field is left out, because a column's messages and blocks all have the same fields; a message's `content`
    stays, as null.
    """
    return _canonical.encode([_without_nulls(message, keep=("content",)) for message in messages])


def canonical_json(text: str) -> bytes:
    """JSON text as canonical JSON; what cannot be read as JSON stays as it is."""
    try:
        return _canonical.encode(msgspec.json.decode(text))
    except (msgspec.DecodeError, RecursionError):
        return text.encode()


def _without_nulls(value: Any, keep: Sequence[str] = ()) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_nulls(inner) for name, inner in value.items() if inner is not None or name in keep}
    if isinstance(value, (list, tuple)):
        return [_without_nulls(inner) for inner in value]
    return value

"""Owns what all wire formats share when they read a reply: lenient JSON, counts, and the errors of unusable replies.

On workers.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TypeVar

import msgspec

from batch_infer.contract.errors import Ambiguous, RowRejected
from batch_infer.contract.reply import Usage

T = TypeVar("T")


def read_leniently(where: str, body: bytes, read: Callable[[bytes], T]) -> T:
    """What `read` makes of a body, or of the body mended.

    Args:
        where: The endpoint's name, for the message.
        body: The reply.
        read: Raises `msgspec.DecodeError` where it cannot.

    Raises:
        Ambiguous: neither can be read (`malformed_reply`); the reply may have been billed.
    """
    try:
        try:
            return read(body)
        except msgspec.DecodeError:
            mended = _mended(body)
            if mended is None:
                raise
            return read(mended)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        why = str(error).split("\n", 1)[0][:120]
        raise Ambiguous(
            f"endpoint {where}: its 200 reply cannot be read ({why}). It may have been billed. "
            "If it persists, check that base_url leads to an API of the endpoint's provider.",
            kind="malformed_reply",
            status=200,
        ) from None


def mismatched(where: str, what: str) -> Ambiguous:
    """A packed reply that cannot be told apart into its rows."""
    return Ambiguous(
        f"endpoint {where}: its reply cannot be matched with its request: {what}. It may have been billed.",
        kind="malformed_reply",
        status=200,
    )


def empty_reply(where: str, what: str, usage: Usage) -> RowRejected:
    """A reply that holds nothing to give to the row."""
    return RowRejected(f"endpoint {where}: an empty reply: {what}", kind="empty_reply", status=200, usage=usage)


def no_text(where: str, finish_reason: str | None, refusal: str | None, usage: Usage) -> RowRejected:
    """Why a reply has no text: a content filter, a refusal, the token limit, or no reason at all."""
    if finish_reason == "content_filter":
        said = f": {refusal[:200]}" if refusal else ""
        return RowRejected(
            f"endpoint {where}: the reply was withheld by the content filter{said}",
            kind="content_filter",
            status=200,
            usage=usage,
        )
    if refusal:
        return RowRejected(
            f"endpoint {where}: the model refused: {refusal[:200]}", kind="refusal", status=200, usage=usage
        )
    if finish_reason == "length":
        return empty_reply(where, "the token limit was reached before any text; raise max_tokens", usage)
    return empty_reply(where, "it holds no text", usage)


def count(value: int | None) -> int | None:
    """A number of tokens; unknown where it is negative."""
    return value if value is not None and value >= 0 else None


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

"""Owns reading an embeddings reply: each vector to its row, whatever their order. Pure. On workers."""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence
from typing import Any

import msgspec

from batch_infer.adapters.providers.reading import empty_reply, mismatched
from batch_infer.adapters.providers.usage import read_usage
from batch_infer.adapters.transport.status import NO_RULES, ErrorRules, error_in_reply
from batch_infer.contract.errors import EndpointError
from batch_infer.contract.reply import Reply, apportion
from batch_infer.contract.request import Request


class _Vector(msgspec.Struct):
    embedding: list[float] | str
    index: int | None = None


class _Embeddings(msgspec.Struct):
    data: list[_Vector] | None = None
    model: str | None = None
    usage: msgspec.Raw = msgspec.Raw(b"null")
    error: Any = None


_embeddings = msgspec.json.Decoder(_Embeddings)


def read_embeddings(
    where: str, body: bytes, requests: Sequence[Request], rules: ErrorRules = NO_RULES
) -> list[Reply | EndpointError]:
    """A vector for each row, as numbers or in base64; an empty vector is its row's `empty_reply`.

    Raises:
        msgspec.DecodeError: the body is no embeddings reply.
        Ambiguous: the vectors cannot be matched with the rows.
        EndpointError: the body carries an error.
    """
    reply = _embeddings.decode(body)
    data = reply.data
    if data is None:
        if reply.error is not None:
            raise error_in_reply(where, reply.error, rules)
        data = []
    vectors: dict[int, list[float]] = {}
    for position, item in enumerate(data):
        index = position if item.index is None else item.index
        if index in vectors or not 0 <= index < len(requests):
            raise mismatched(where, f"the index {index} is repeated or out of range")
        vectors[index] = item.embedding if isinstance(item.embedding, list) else _floats(item.embedding)
    if len(vectors) != len(requests):
        raise mismatched(where, f"{len(requests)} texts were sent and {len(vectors)} vectors came back")
    if len({len(vector) for vector in vectors.values() if vector}) > 1:
        raise mismatched(where, "its vectors differ in length")
    shares = apportion(read_usage(reply.usage), [request.prompt_tokens for request in requests])
    return [
        Reply(embedding=vectors[i], model=reply.model, usage=share)
        if vectors[i]
        else empty_reply(where, "its vector is empty", share)
        for i, share in enumerate(shares)
    ]


def _floats(text: str) -> list[float]:
    """A base64 embedding: little-endian 32-bit floats."""
    try:
        data = base64.b64decode(text, validate=True)
        return list(struct.unpack(f"<{len(data) // 4}f", data))
    except (ValueError, struct.error):
        raise msgspec.DecodeError("an embedding is neither numbers nor base64 of 32-bit floats") from None

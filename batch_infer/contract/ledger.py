"""Owns the ledger's records and their bytes: intents, outcomes, frames, precedence. Does not read or write files.

A log is a sequence of frames, and nothing else:

    marker (4 bytes) · payload length (u32) · CRC-32 of the payload, seeded with its length (u32) · payload

Integers are little-endian. The payload is JSON, that is UTF-8, in which the byte 0xFF never occurs; the marker starts
with it. So a reader that meets a damaged frame looks for the next marker and cannot be led astray by what a prompt or
a reply contains. Records:

    {"t":"h",…}   a log starts: format and name
    {"t":"i",…}   requests are about to be sent
    {"t":"o",…}   what became of one request
"""

from __future__ import annotations

import base64
import struct
import sys
import zlib
from array import array
from typing import Any

import msgspec

from batch_infer.contract.reply import Failure, Outcome, Reply, Usage

FORMAT = 1
MARKER = b"\xffBIL"
FRAME_HEADER = struct.Struct("<4sII")
MAX_PAYLOAD_BYTES = 256 * 1024 * 1024
"""A longer length field is damage, not a record."""

_FRESH = 1 << 63


class LogStart(msgspec.Struct, frozen=True, tag_field="t", tag="h"):
    """The first record of a log."""

    format: int
    name: str
    at_us: int


class Intent(msgspec.Struct, frozen=True, tag_field="t", tag="i", omit_defaults=True):
    """Requests that are about to be sent, in one HTTP request."""

    at_us: int
    """Microseconds since 1970, UTC, by the clock of whoever wrote it."""
    keys: tuple[str, ...]
    endpoint: str = ""


class Recorded(msgspec.Struct, frozen=True, tag_field="t", tag="o", omit_defaults=True):
    """What became of one request, with what the inference table shows of it."""

    key: str
    at_us: int
    failed: bool = False
    """No answer: never served."""
    fresh: bool = False
    """Asked for although an answer may have been known: takes precedence over answers that were not."""
    attempts: int = 0
    latency_ms: int | None = None
    usage: Usage = Usage()
    cost_usd: float | None = None
    endpoint: str = ""
    model: str | None = None
    status: int | None = None
    prompt: str | None = None
    messages: str | None = None
    """The request's messages as JSON text."""
    tokens: list[int] | None = None
    files: int = 0
    """How many files went with the request; their bytes are not kept."""
    reply: Reply | None = None
    """Without its embedding, which is in `vector`."""
    vector: str | None = None
    """The embedding in base64: little-endian float32 when they hold its values exactly, else float64."""
    vector_length: int = 0
    failure: Failure | None = None
    origin: int = -1
    """The job's number of the row that was billed (`Request.origin`)."""


class Heading(msgspec.Struct, frozen=True, tag_field="t", tag="o"):
    """The part of `Recorded` that an index and an audit need: the rest is not decoded."""

    key: str
    at_us: int
    failed: bool = False
    fresh: bool = False
    attempts: int = 0
    usage: Usage = Usage()
    cost_usd: float | None = None
    endpoint: str = ""


class _Answer(msgspec.Struct, frozen=True, tag_field="t", tag="o"):
    """The part of `Recorded` that is served."""

    key: str
    reply: Reply | None = None
    vector: str | None = None
    vector_length: int = 0
    usage: Usage = Usage()
    latency_ms: int | None = None
    at_us: int = 0
    attempts: int = 0
    origin: int = -1


Record = LogStart | Intent | Recorded

_encoder = msgspec.json.Encoder()
_record_decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(LogStart | Intent | Recorded)
_heading_decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(LogStart | Intent | Heading)
_answer_decoder = msgspec.json.Decoder(_Answer)


def encode(record: Record) -> bytes:
    """One record as a frame.

    Raises:
        ValueError: the payload is longer than `MAX_PAYLOAD_BYTES`.
    """
    try:
        payload = _encoder.encode(record)
    except UnicodeEncodeError:  # lone surrogates: the reply is paid for, so it is kept with replacement characters
        payload = _encoder.encode(_encodable(msgspec.to_builtins(record)))
    return frame(payload)


def frame(payload: bytes) -> bytes:
    """A payload with its header. Raises `ValueError` when it is longer than `MAX_PAYLOAD_BYTES`."""
    length = len(payload)
    if length > MAX_PAYLOAD_BYTES:
        raise ValueError(f"a record of {length:,} bytes is longer than the ledger's {MAX_PAYLOAD_BYTES:,}")
    return FRAME_HEADER.pack(MARKER, length, zlib.crc32(payload, length)) + payload


def payload_of(data: bytes) -> bytes | None:
    """The payload of exactly one frame, or `None` when the frame is damaged."""
    if len(data) < FRAME_HEADER.size:
        return None
    marker, length, checksum = FRAME_HEADER.unpack_from(data)
    payload = data[FRAME_HEADER.size :]
    if marker != MARKER or length != len(payload) or zlib.crc32(payload, length) != checksum:
        return None
    return payload


def decode(payload: bytes) -> Record:
    """The whole record. Fields of a later version are ignored.

    Raises:
        msgspec.MsgspecError: the payload is not a record.
    """
    record: Record = _record_decoder.decode(payload)
    return record


def decode_heading(payload: bytes) -> LogStart | Intent | Heading:
    """The record without its texts; several times faster than `decode`."""
    record: LogStart | Intent | Heading = _heading_decoder.decode(payload)
    return record


def decode_answer(payload: bytes) -> tuple[str, Outcome] | None:
    """The key, and the outcome as it is served: `from_ledger`; usage, attempts and latency as they were then.

    `None` for a failure, which is no answer.
    """
    answer = _answer_decoder.decode(payload)
    if answer.reply is None:
        return None
    return answer.key, Outcome(
        reply=_with_embedding(answer.reply, answer.vector, answer.vector_length),
        usage=answer.usage,
        attempts=answer.attempts,
        latency_ms=answer.latency_ms,
        from_ledger=True,
        at_us=answer.at_us,
        origin=answer.origin,
    )


def reply_of(record: Recorded) -> Reply | None:
    """The reply as it was recorded, its embedding included."""
    return None if record.reply is None else _with_embedding(record.reply, record.vector, record.vector_length)


def record_of(
    key: str,
    content: str | bytes | list[int] | None,
    outcome: Outcome,
    *,
    at_us: int,
    fresh: bool = False,
    endpoint: str = "",
    model: str | None = None,
    cost_usd: float | None = None,
    files: int = 0,
    origin: int = -1,
) -> Recorded:
    """The record of one outcome.

    Args:
        key: The `request_key`.
        content: `Request.content`; `None` keeps the request out of the ledger.
        outcome: As the engine reports it.
        at_us: Microseconds since 1970.
        fresh: See `Recorded.fresh`.
        endpoint: The endpoint's local name.
        model: What was asked for; the name that the reply reports goes before it.
        cost_usd: `None` when the price is unknown.
        files: How many files went with it.
        origin: `Request.origin`.
    """
    reply, failure = outcome.reply, outcome.failure
    vector, vector_length = None, 0
    status = None if failure is None else failure.status
    if reply is not None:
        status = 200
        model = reply.model or model
        if reply.embedding is not None:
            vector, vector_length = pack_vector(reply.embedding), len(reply.embedding)
            reply = msgspec.structs.replace(reply, embedding=None)
    return Recorded(
        key,
        at_us,
        reply is None,
        fresh,
        outcome.attempts,
        outcome.latency_ms,
        outcome.usage,
        cost_usd,
        endpoint,
        model,
        status,
        content if isinstance(content, str) else None,
        content.decode("utf-8", "replace") if isinstance(content, bytes) else None,
        content if isinstance(content, list) else None,
        files,
        reply,
        vector,
        vector_length,
        failure,
        origin,
    )


def precedence(at_us: int, *, fresh: bool) -> int:
    """An unsigned 64-bit rank: of several answers to one key, the one of the highest rank is served.

    Fresh answers come before others, the newest of them first; of the others the oldest comes first, so that what a
    row was given once is what it is given again.
    """
    return _FRESH | at_us if fresh else _FRESH - 1 - at_us


def pack_vector(values: list[float]) -> str:
    """An embedding in base64, without loss: as float32 when that is exact (it is what models compute), else float64."""
    packed = array("f", values)
    if packed.tolist() != values:
        packed = array("d", values)
    if sys.byteorder == "big":
        packed.byteswap()
    return base64.b64encode(packed.tobytes()).decode("ascii")


def unpack_vector(text: str, length: int) -> list[float]:
    """The embedding that `pack_vector` packed."""
    data = base64.b64decode(text)
    unpacked = array("f" if len(data) == 4 * length else "d", data)
    if sys.byteorder == "big":
        unpacked.byteswap()
    return unpacked.tolist()


def _with_embedding(reply: Reply, vector: str | None, length: int) -> Reply:
    return reply if vector is None else msgspec.structs.replace(reply, embedding=unpack_vector(vector, length))


def _encodable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {key: _encodable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_encodable(item) for item in value]
    return value

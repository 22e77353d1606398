"""Owns the ledger's records and their bytes: intents, outcomes, frames, precedence. Does not read or write files.

A log is a sequence of frames, and nothing else:

    marker (4 bytes) · payload length (u32) · CRC-32 of the payload, seeded with its length (u32) · payload

Integers are little-endian. The payload is JSON, that is UTF-8, in which the byte 0xFF never occurs; the marker starts
with it. So a reader that meets a damaged frame looks for the next marker and cannot be led astray by what a prompt or
a reply contains. Records:

    {"t":"h",…}   a log starts: format and name
    {"t":"i",…}   requests are about to be sent
    {"t":"o",…}   what became of one request

On driver and workers.
"""

from __future__ import annotations

import base64
import struct
import sys
import zlib
from array import array
from hashlib import blake2b
from typing import Any

import msgspec

from batch_infer.contract.reply import Failure, Outcome, Reply, Usage

FORMAT = 1
MARKER = b"\xffBIL"
FRAME_HEADER = struct.Struct("<4sII")
MAX_PAYLOAD_BYTES = 256 * 1024 * 1024
"""A longer length field is damage, not a record."""

_FRESH = 1 << 63
LEAST_ANSWER = 1 << 62
"""The rank (`precedence`) of every answer is above this, and that of every failure below."""
TYPE_KINDS = frozenset({"type_mismatch"})
"""Kinds of failure that depend on the type asked for, which is no part of the request's key."""


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
    run: str = ""
    """The run that sends them; see `same_run`."""


class Recorded(msgspec.Struct, frozen=True, tag_field="t", tag="o", omit_defaults=True):
    """What became of one request, with what the inference table shows of it."""

    key: str
    at_us: int
    failed: bool = False
    """No answer. Served as the failure that it is, where sending again would give it again (`is_final`)."""
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
    run: str = ""
    """The run that sent it; see `same_run`."""
    result_type: str = ""
    """Of a failure: a digest of the type asked for, on which failures of `TYPE_KINDS` depend."""


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


class _Served(msgspec.Struct, frozen=True, tag_field="t", tag="o"):
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
    failure: Failure | None = None
    run: str = ""
    result_type: str = ""


Record = LogStart | Intent | Recorded

_encoder = msgspec.json.Encoder()
_record_decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(LogStart | Intent | Recorded)
_heading_decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(LogStart | Intent | Heading)
_served_decoder = msgspec.json.Decoder(_Served)


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


def decode_outcome(payload: bytes) -> tuple[str, Outcome]:
    """The key, and the outcome as it is served: `from_ledger`; usage, attempts and latency as they were then.

    Raises:
        msgspec.MsgspecError: the payload is no outcome.
    """
    served = _served_decoder.decode(payload)
    reply = served.reply
    if reply is None and served.failure is None:
        raise msgspec.ValidationError("an outcome with neither a reply nor a failure")
    return served.key, Outcome(
        reply=None if reply is None else _with_embedding(reply, served.vector, served.vector_length),
        failure=served.failure,
        usage=served.usage,
        attempts=served.attempts,
        latency_ms=served.latency_ms,
        from_ledger=True,
        at_us=served.at_us,
        origin=served.origin,
        run=served.run,
        result_type=served.result_type,
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
    run: str = "",
    result_type: str = "",
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
        run: See `Recorded.run`.
        result_type: See `Recorded.result_type`.
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
        key=key,
        at_us=at_us,
        failed=reply is None,
        fresh=fresh,
        attempts=outcome.attempts,
        latency_ms=outcome.latency_ms,
        usage=outcome.usage,
        cost_usd=cost_usd,
        endpoint=endpoint,
        model=model,
        status=status,
        prompt=content if isinstance(content, str) else None,
        messages=content.decode("utf-8", "replace") if isinstance(content, bytes) else None,
        tokens=content if isinstance(content, list) else None,
        files=files,
        reply=reply,
        vector=vector,
        vector_length=vector_length,
        failure=failure,
        origin=origin,
        run=run,
        result_type="" if failure is None else result_type,
    )


def precedence(at_us: int, *, fresh: bool, failed: bool = False) -> int:
    """An unsigned 64-bit rank: of several outcomes of one key, the one of the highest rank is served.

    Fresh answers come before others, the newest of them first; of the others the oldest comes first, so that what a
    row was given once is what it is given again. Failures come after all answers, the newest first.
    """
    if failed:
        return at_us
    return _FRESH | at_us if fresh else _FRESH - 1 - at_us


def is_final(outcome: Outcome, result_type: str) -> bool:
    """Whether a recorded failure is what the endpoint would give again, for a result of this type.

    Not what only a limit of ours refused: such a request was never sent, and limits are no part of its key.
    """
    failure = outcome.failure
    if failure is None or failure.retryable or not outcome.attempts:
        return False
    return failure.kind not in TYPE_KINDS or outcome.result_type == result_type


def type_digest(result_type: Any) -> str:
    """Names a result type, given in Spark's JSON form."""
    return blake2b(msgspec.json.encode(result_type, order="sorted"), digest_size=4).hexdigest()


def same_run(one: str, other: str) -> bool:
    """Whether two runs are the same one, or its continuation: a run's name is `<run>`, or `<run>.<continuation>`."""
    return bool(one) and one.partition(".")[0] == other.partition(".")[0]


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

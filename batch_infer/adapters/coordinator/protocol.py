"""Owns the messages between workers and the driver's service, and their sealed frames. Does no I/O.

A connection, from the worker's side:

    ← greeting    4 bytes magic and version, 16 random bytes: the connection's challenge
    → request     4 bytes length, 12 bytes random nonce, ChaCha20-Poly1305(message)
    ← reply       the same form
    → request …   one at a time; as many as wanted

Both keys (one a direction) are derived from the job's random token with HKDF-SHA256, so whoever lacks the token can
neither read nor speak. What each frame is bound to (its associated data) makes it good for one place only:

    request       the connection's challenge and the request's number on that connection. Replayed on the same
                  connection or on any other, it does not open; the guard needs neither clocks nor a memory of nonces.
    reply         the nonce of the request it answers. It cannot be replayed, swapped or reflected.

Source: RFC 8439 (ChaCha20-Poly1305), RFC 5869 (HKDF). Random 96-bit nonces: 200 workers, four messages a second, for
ten days are 2^29.4 messages under a key, and a nonce repeats with probability 2^-38.

On driver and workers.
"""

from __future__ import annotations

import os
import struct
from typing import TypeAlias, TypeVar

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from batch_infer.contract.limits import Grant, Standing
from batch_infer.contract.progress import Counters, TaskId

MAGIC = b"bi\x00\x02"
"""First bytes of a greeting; the last is the protocol's version."""
CHALLENGE_BYTES = 16
GREETING_BYTES = len(MAGIC) + CHALLENGE_BYTES
TOKEN_BYTES = 32
LENGTH_BYTES = 4
NONCE_BYTES = 12
TAG_BYTES = 16
MAX_FRAME_BYTES = 1024 * 1024
"""Bytes of a frame, nonce and sealed message together, at most. The largest real message is a few KiB."""
PENDING_AFTER_S = 10.0
"""A question that takes longer is answered `Pending`; firewalls drop connections that are silent for minutes."""
MAX_TEXT_CHARS = 4_000
"""Reasons and error messages are cut to this, so that no text makes a frame too large."""


class AskSecret(msgspec.Struct, frozen=True, tag="secret"):
    """Asks for the secret behind a reference that the call was opened with. Answer: `SecretReply`."""

    call: str
    reference: str
    wait_s: float = PENDING_AFTER_S
    """Seconds after which `Pending` is welcome instead; the service never waits longer than `PENDING_AFTER_S`."""


class AskAddress(msgspec.Struct, frozen=True, tag="address"):
    """Asks for the URL of a model server on the driver, which may have to start first. Answer: `AddressReply`."""

    call: str
    endpoint: str
    wait_s: float = PENDING_AFTER_S
    """As for `AskSecret`."""


class Report(msgspec.Struct, frozen=True, tag="report", omit_defaults=True):
    """A task attempt's heartbeat. Answer: `Directive`."""

    call: str
    task: TaskId
    counters: Counters
    finished: bool = False
    """The attempt's last report."""
    fatal: str | None = None
    """Why no row of the whole call can succeed; every task of the call is told to stop with these words."""
    standing: Standing | None = None
    """What the task has used of the endpoint's budget and waits for; `None`: it asks for nothing."""


class SecretReply(msgspec.Struct, frozen=True, tag="secret"):
    """The secret, or `None`: the driver cannot resolve it either."""

    value: str | None

    def __repr__(self) -> str:
        return f"SecretReply({'None' if self.value is None else 'redacted'})"

    def __rich_repr__(self) -> list[str]:  # type: ignore[override]
        return ["None" if self.value is None else "redacted"]


class AddressReply(msgspec.Struct, frozen=True, tag="address"):
    """The server's URL."""

    url: str


class Pending(msgspec.Struct, frozen=True, tag="pending"):
    """Still being resolved, or starting: ask again. Keeps a connection from being silent for minutes."""


class Directive(msgspec.Struct, frozen=True, tag="directive", omit_defaults=True):
    """What the reporting task is to do."""

    stop: str | None = None
    """Why to stop at once; `None`: go on."""
    halt: str | None = None
    """Why to send nothing further, while what is in flight comes home and the task succeeds; `None`: go on."""
    grant: Grant | None = None
    """What the task may use of the endpoint's budget; `None`: the report asked for nothing, or the task is to stop."""


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """The request was understood and is not granted."""

    message: str


Request: TypeAlias = AskSecret | AskAddress | Report
Reply: TypeAlias = SecretReply | AddressReply | Pending | Directive | Refused
_Message = TypeVar("_Message")


class FrameError(Exception):
    """A frame that is not for us. The message says why in words, and holds nothing of the frame."""


class Codec:
    """Seals and opens messages under one token. Immutable, safe to share between threads.

    Every `open_*` raises `FrameError` on a frame that is cut, altered, replayed, or sealed under another token.
    """

    def __init__(self, token: bytes) -> None:
        if len(token) != TOKEN_BYTES:
            raise ValueError(f"a token has {TOKEN_BYTES} bytes, not {len(token)}.")
        self._requests = ChaCha20Poly1305(_derive(token, b"request"))
        self._replies = ChaCha20Poly1305(_derive(token, b"reply"))
        self._encoder = msgspec.msgpack.Encoder()
        self._request_decoder: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
        self._reply_decoder: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)

    def seal_request(self, request: Request, *, challenge: bytes, number: int) -> tuple[bytes, bytes]:
        """The frame, and its nonce, which the reply will be bound to.

        Args:
            request: The message.
            challenge: From the greeting of the connection that the frame goes to.
            number: Requests sent on that connection before.
        """
        return self._seal(self._requests, self._encoder.encode(request), _place(challenge, number))

    def open_request(self, body: bytes, *, challenge: bytes, number: int) -> tuple[Request, bytes]:
        """The message and its nonce, from a frame without its length."""
        nonce, plain = self._open(self._requests, body, _place(challenge, number))
        return _decoded(self._request_decoder, plain), nonce

    def seal_reply(self, reply: Reply, *, request_nonce: bytes) -> bytes:
        """The frame that answers the request with that nonce."""
        return self._seal(self._replies, self._encoder.encode(reply), b"reply" + request_nonce)[0]

    def open_reply(self, body: bytes, *, request_nonce: bytes) -> Reply:
        """The message, from a frame without its length."""
        return _decoded(self._reply_decoder, self._open(self._replies, body, b"reply" + request_nonce)[1])

    @staticmethod
    def _seal(cipher: ChaCha20Poly1305, plain: bytes, bound_to: bytes) -> tuple[bytes, bytes]:
        nonce = os.urandom(NONCE_BYTES)
        body = nonce + cipher.encrypt(nonce, plain, bound_to)
        if len(body) > MAX_FRAME_BYTES:
            raise ValueError(f"a message of {len(plain)} bytes does not fit into a frame of {MAX_FRAME_BYTES} bytes.")
        return struct.pack(">I", len(body)) + body, nonce

    @staticmethod
    def _open(cipher: ChaCha20Poly1305, body: bytes, bound_to: bytes) -> tuple[bytes, bytes]:
        nonce = body[:NONCE_BYTES]
        try:
            return nonce, cipher.decrypt(nonce, body[NONCE_BYTES:], bound_to)
        except (InvalidTag, ValueError):
            raise FrameError("sealed under another token, altered, or replayed") from None


def body_length(header: bytes) -> int:
    """The length that a frame announces.

    Raises:
        FrameError: it is outside of what a frame can have; nothing more should be read.
    """
    (length,) = struct.unpack(">I", header)
    if not NONCE_BYTES + TAG_BYTES < length <= MAX_FRAME_BYTES:
        raise FrameError("of an impossible length")
    return int(length)


def fitting(text: str) -> str:
    """`text` as a message can carry it: cut to `MAX_TEXT_CHARS`, and without the lone surrogates of broken replies."""
    return text[:MAX_TEXT_CHARS].encode("utf-8", "replace").decode("utf-8")


def _derive(token: bytes, direction: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=b"batch_infer driver service v1 " + direction).derive(
        token
    )


def _place(challenge: bytes, number: int) -> bytes:
    return b"request" + challenge + struct.pack(">Q", number)


def _decoded(decoder: msgspec.msgpack.Decoder[_Message], plain: bytes) -> _Message:
    try:
        return decoder.decode(plain)
    except msgspec.DecodeError:
        raise FrameError("not a message of this version") from None

"""Owns HTTP/1.1 on the fault endpoint's connections: reading requests, writing replies, spoiling the connection.

Does not decide what to answer.
"""

from __future__ import annotations

import asyncio
import functools
import socket
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus
from typing import Any, NamedTuple, Protocol

CHUNK = b" " * 65536
GZIP_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03"
RESET_ON_CLOSE = struct.pack("ii", 1, 0)
MAX_HEAD_BYTES = 65536

_REASONS = {int(status): status.phrase for status in HTTPStatus}


class Head(NamedTuple):
    """The first line and the headers of a request. Header names are lower case."""

    method: str
    path: str
    headers: Mapping[str, str]


@functools.lru_cache(maxsize=1024)
def parse_head(raw: bytes) -> Head:
    """Reads a request up to the empty line. Cached: a client's requests differ in little but their length.

    Raises:
        ValueError: it is not HTTP.
    """
    lines = raw.decode("latin-1").split("\r\n")
    method, path, _ = lines[0].split(" ", 2)
    headers = {}
    for line in lines[1:]:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    return Head(method, path, headers)


class Application(Protocol):
    """What a connection needs to know of the endpoint."""

    idle_close_s: float | None

    def handle(self, connection: Connection, head: Head, body: bytes) -> None:
        """Takes a request; later, once, `connection.reply` or one of its faults is called."""

    def lost(self, connection: Connection) -> None:
        """The connection is gone; `connection.work`, when set, was not answered yet."""


class Connection(asyncio.Protocol):
    """One keep-alive connection. Requests are handled one at a time, in order."""

    def __init__(self, application: Application) -> None:
        self.application = application
        self.work: Any = None
        self.counted = False
        self.closed = False
        self._transport: asyncio.Transport = None  # type: ignore[assignment]
        self._buffer = bytearray()
        self._head: Head | None = None
        self._need = 0
        self._busy = False
        self._timer: asyncio.TimerHandle | None = None
        self._writable: Callable[[], None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:  # noqa: D102
        self._transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: D102, ARG002
        self.closed = True
        self._writable = None
        self._cancel_timer()
        self.application.lost(self)

    def data_received(self, data: bytes) -> None:  # noqa: D102
        self._buffer += data
        if not self._busy:
            self._advance()

    def resume_writing(self) -> None:  # noqa: D102
        if self._writable is not None:
            self._writable()

    def _advance(self) -> None:
        """Hands over the next request when it is complete. Afterwards `reply` calls this again."""
        self._cancel_timer()
        if self._head is None:
            if not self._buffer[:1].isalpha():  # no HTTP method: a TLS handshake, most likely
                self._write(400, {"connection": "close"}, b"")
                self.close()
                return
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                if len(self._buffer) > MAX_HEAD_BYTES:
                    self._transport.abort()
                return
            try:
                self._head = parse_head(bytes(self._buffer[:end]))
                self._need = int(self._head.headers.get("content-length", 0))
            except ValueError:
                self._transport.abort()
                return
            del self._buffer[: end + 4]
            if "transfer-encoding" in self._head.headers:
                self._write(411, {"connection": "close"}, b"")
                self.close()
                return
            if self._need and self._head.headers.get("expect", "").lower() == "100-continue":
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if len(self._buffer) < self._need:
            return
        head, body = self._head, bytes(self._buffer[: self._need])
        del self._buffer[: self._need]
        self._head = None
        self._busy = True
        self.application.handle(self, head, body)

    def reply(self, status: int, headers: dict[str, str], body: bytes) -> None:
        """Sends a whole reply and goes on to the next request."""
        self._write(status, headers, body)
        self._busy = False
        if self._buffer:
            self._advance()
        elif self.application.idle_close_s is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self.application.idle_close_s, self.close)

    def close(self) -> None:
        """Closes in good order, after what was written."""
        self._transport.close()

    def reset(self) -> None:
        """Resets the connection; what is still in the buffers is lost."""
        raw = self._transport.get_extra_info("socket")
        if raw is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        self._transport.abort()

    def _write(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self._transport.write(_head(status, headers, len(body)) + body)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def spoil(self, fault: str, headers: dict[str, str], body: bytes, interval_s: float, size: int) -> None:
        """Carries out a wire fault in place of `reply`. `body` is the correct reply that is spoilt."""
        if fault == "reset_before_reply":
            self.reset()
        elif fault == "close_before_reply":
            self.close()
        elif fault in ("reset_mid_body", "close_mid_body", "stall_mid_body"):
            self._transport.write(_head(200, headers, len(body)) + body[: len(body) // 2])
            if fault == "reset_mid_body":
                # The client must have read the first half, or the reset would overtake it.
                self._timer = asyncio.get_running_loop().call_later(0.05, self.reset)
            elif fault == "close_mid_body":
                self.close()
        elif fault == "slowloris":
            self._transport.write(_head(200, headers, len(body)))
            self._drip(body, 0, interval_s)
        elif fault == "gzip_bomb":
            bomb = gzip_of_spaces(size)
            self.reply(200, {**headers, "content-encoding": "gzip"}, bomb)
        elif fault == "huge_body":
            self._transport.write(_head(200, headers, size))
            self._pour(iter([CHUNK] * (size // len(CHUNK))))
        elif fault == "huge_chunked":
            self._transport.write(_head(200, headers, None))
            frame = b"%x\r\n%s\r\n" % (len(CHUNK), CHUNK)
            self._pour(iter([frame] * (size // len(CHUNK))))
        # What remains is `stall`: nothing is sent, ever.

    def _drip(self, body: bytes, at: int, interval_s: float) -> None:
        self._transport.write(body[at : at + 1])
        if at + 1 < len(body):
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(interval_s, self._drip, body, at + 1, interval_s)
        else:
            self._busy = False

    def _pour(self, chunks: Iterator[bytes]) -> None:
        """Writes chunks as fast as the client takes them, holding no more than the transport's buffer."""
        for chunk in chunks:
            if self.closed:
                return
            self._transport.write(chunk)
            if self._transport.get_write_buffer_size() > len(CHUNK):
                self._writable = lambda: self._pour(chunks)
                return
        self._writable = None


def _head(status: int, headers: dict[str, str], length: int | None) -> bytes:
    lines = [f"HTTP/1.1 {status} {_REASONS.get(status, 'Unknown')}"]
    if "content-type" not in headers:
        lines.append("content-type: application/json")
    lines += [f"{name}: {value}" for name, value in headers.items()]
    lines.append("transfer-encoding: chunked" if length is None else f"content-length: {length}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def gzip_of_spaces(size: int) -> bytes:
    """A gzip stream that decompresses to `size` spaces, built without compressing more than one block of them.

    A full flush makes a block of deflate independent of what came before, so it can be repeated.
    """
    block_size = 1 << 20
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    deflate.compress(b" " * block_size)
    first = deflate.flush(zlib.Z_FULL_FLUSH)
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    tail = deflate.compress(b" " * (size % block_size)) + deflate.flush()
    crc = 0
    for _ in range(size // block_size):
        crc = zlib.crc32(_SPACES, crc)
    crc = zlib.crc32(b" " * (size % block_size), crc)
    return GZIP_HEADER + first * (size // block_size) + tail + struct.pack("<II", crc, size & 0xFFFFFFFF)


_SPACES = b" " * (1 << 20)

"""Owns reading a log from end to end, past whatever is damaged in it. Does not know what the records mean.

On driver and workers.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator

from batch_infer.adapters.ledger.records import FRAME_HEADER, MARKER, MAX_PAYLOAD_BYTES

CHUNK_BYTES = 4 * 1024 * 1024


class Scan:
    """Iterates over the sound records of a log: `(offset, frame length, payload)`. One pass.

    Attributes:
        end: Just after the last sound record; a later scan of a grown log starts there.
        corrupt: Damaged records that were skipped.
        torn: 1 when the log ends in an unfinished record, else 0.

    Args:
        read: `read(offset, length)` gives up to `length` bytes.
        size: Bytes to read at most, counted from the start of the log.
        start: Where a record starts.
    """

    def __init__(self, read: Callable[[int, int], bytes], size: int, start: int = 0) -> None:
        self.end = start
        self.corrupt = 0
        self.torn = 0
        self._read = read
        self._size = size
        self._buffer = b""
        self._base = start  # the log offset of the buffer's first byte

    def __iter__(self) -> Iterator[tuple[int, int, bytes]]:
        """See the class."""
        header_size = FRAME_HEADER.size
        at = self._base
        while at < self._size:
            start = self._have(at, header_size)
            buffer = self._buffer
            if len(buffer) - start < header_size:
                unfinished = True
            else:
                marker, length, checksum = FRAME_HEADER.unpack_from(buffer, start)
                unfinished = marker != MARKER
                if marker == MARKER and length <= MAX_PAYLOAD_BYTES:
                    if len(buffer) - start < header_size + length:
                        start = self._have(at, header_size + length)
                        buffer = self._buffer
                    payload = buffer[start + header_size : start + header_size + length]
                    if len(payload) == length and zlib.crc32(payload, length) == checksum:
                        self.end = at + header_size + length
                        yield at, header_size + length, payload
                        at = self.end
                        continue
                    unfinished = len(payload) < length
            found = self._next_marker(at + 1)
            if found is None:
                self.torn += unfinished
                self.corrupt += not unfinished
                return
            self.corrupt += 1
            at = found

    def _have(self, at: int, length: int) -> int:
        """Sees to it that the buffer holds `length` bytes from `at`, as far as the log goes; `at`'s place in it."""
        start = at - self._base
        missing = length - (len(self._buffer) - start)
        if missing > 0:
            more = self._fetch(self._base + len(self._buffer), max(missing, CHUNK_BYTES))
            self._buffer = self._buffer[start:] + more
            self._base = at
            return 0
        return start

    def _fetch(self, offset: int, length: int) -> bytes:
        return self._read(offset, min(length, self._size - offset)) if offset < self._size else b""

    def _next_marker(self, at: int) -> int | None:
        while True:
            start = self._have(at, len(MARKER))
            found = self._buffer.find(MARKER, start)
            if found >= 0:
                return self._base + found
            at = max(at, self._base + len(self._buffer) - len(MARKER) + 1)
            if self._base + len(self._buffer) >= self._size:
                return None
            more = self._fetch(self._base + len(self._buffer), CHUNK_BYTES)
            if not more:
                return None
            self._buffer = self._buffer[at - self._base :] + more
            self._base = at

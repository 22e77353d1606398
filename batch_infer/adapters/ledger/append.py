"""Owns the log of one writer, on files that grow and on stores whose files do not. Does not know what records mean.

Both kinds give a record its place (`log` number, offset) when it is appended, and leave each log's keys beside it.

On driver and workers.
"""

from __future__ import annotations

import fcntl
import logging
import os
import queue
import threading
import time
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from batch_infer.adapters.ledger.catalog import LogKeys, leave_keys, log_path, new_log_name
from batch_infer.adapters.ledger.files import LOG, Files
from batch_infer.adapters.ledger.keys import Coverage
from batch_infer.adapters.ledger.memtable import Recent
from batch_infer.contract.errors import SinkError

logger = logging.getLogger(__name__)

SEGMENT_BYTES = 8 * 1024 * 1024
WAITING_SEGMENTS = 4
"""Segments that may wait for their upload; then recording waits too."""
SPACE_CHECK_RECORDS = 16
"""Free space is asked for once in so many intents: it costs more than writing one."""

ADVICE = (
    "Free some space, or set another path with `spark.batch_infer.ledger`, and run the same again: "
    "what the ledger holds is not paid for twice."
)


class Log(Protocol):
    """Where one writer appends."""

    def check(self) -> None:
        """Raises `SinkError` when a reply that is asked for now might not be kept."""
        ...

    def append(self, frame: bytes, key: str | None = None, rank: int = 0) -> None:
        """Appends a record; with a key, it is an answer. Raises `SinkError`."""
        ...

    def read(self, log: int, offset: int, length: int) -> bytes:
        """A record that was appended here."""
        ...

    def close(self) -> None:
        """Finishes the log and leaves its keys beside it. Idempotent."""
        ...


class GrowingLog:
    """One file, written with one `write` a record and no buffer of ours: what is appended outlives a SIGKILL."""

    def __init__(self, files: Files, writer: str, recent: Recent, first: bytes, min_free_bytes: int) -> None:
        self._files = files
        self._recent = recent
        self._min_free_bytes = min_free_bytes
        self.name = new_log_name(writer)
        self._path = files.near(log_path(self.name))
        self._records = 0
        self._until_check = 0
        self._broken: SinkError | None = None
        self._closed = False
        self._end = 0
        try:
            flags = os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_RDWR | os.O_CLOEXEC
            self._handle = os.open(self._path, flags, 0o600)
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            _lock(self._handle)
            self.check()
            self._write(first)
        except (OSError, SinkError) as error:
            os.close(self._handle)
            self._path.unlink(missing_ok=True)
            raise (error if isinstance(error, SinkError) else self._unwritable(error)) from error
        self._records = 0
        self._empty = self._end

    def check(self) -> None:
        """See `Log.check`."""
        if self._broken is not None:
            raise self._broken
        self._until_check -= 1
        if self._until_check > 0 or not self._min_free_bytes:
            return
        self._until_check = SPACE_CHECK_RECORDS
        disk = os.fstatvfs(self._handle)
        if disk.f_bavail * disk.f_frsize < self._min_free_bytes:
            raise SinkError(
                f"The disk of the ledger at {self._files.root} has less than {self._min_free_bytes:,} bytes free, so "
                f"no further request is sent. All {self._records:,} replies that this task recorded are kept. {ADVICE}"
            )

    def append(self, frame: bytes, key: str | None = None, rank: int = 0) -> None:
        """See `Log.append`."""
        offset = self._end
        try:
            self._write(frame)
        except OSError as error:
            self._broken = self._full(error, key)
            raise self._broken from error
        if key is not None:
            self._records += 1
            self._recent.add(key, (rank, offset, len(frame), 0))
            if self._recent.is_full():
                self._recent.settle()

    def read(self, log: int, offset: int, length: int) -> bytes:  # noqa: ARG002 - there is one log only
        """See `Log.read`."""
        return os.pread(self._handle, length, offset)

    def close(self) -> None:
        """See `Log.close`."""
        if self._closed:
            return
        self._closed = True
        try:
            if self._end == self._empty:
                self._path.unlink(missing_ok=True)
                return
            os.fsync(self._handle)
            coverage = Coverage(self.name, self._end, self._end)
            leave_keys(self._files, self.name, LogKeys(self._recent.columns(), coverage, True, 0, 0))
        except OSError as error:
            # Every record is in the log; without its keys it is scanned by whoever looks next.
            logger.warning("The keys of the ledger's log %s were not written: %s", self._path, error)
        finally:
            os.close(self._handle)

    def _write(self, frame: bytes) -> None:
        written = os.write(self._handle, frame)
        try:
            while written < len(frame):
                written += os.write(self._handle, frame[written:])
        except OSError:
            os.ftruncate(self._handle, self._end)  # no torn record is left behind
            raise
        self._end += len(frame)

    def _unwritable(self, error: OSError) -> SinkError:
        return SinkError(
            f"The ledger at {self._files.root} cannot be written: {error.strerror}. Nothing was sent and nothing is "
            f"lost. {ADVICE}"
        )

    def _full(self, error: OSError, key: str | None) -> SinkError:
        lost = f" The reply to request {key} was not kept." if key else " Nothing more is sent."
        return SinkError(
            f"The ledger at {self._files.root} cannot be written: {error.strerror}.{lost} All {self._records:,} "
            f"replies that this task recorded before are kept. {ADVICE}"
        )


class SegmentLog:
    """Small immutable files, uploaded by a thread of their own: what is not uploaded yet is lost with the process."""

    def __init__(
        self, files: Files, writer: str, recent: Recent, first: bytes, *, window_rows: int, window_s: float
    ) -> None:
        self._files = files
        self._recent = recent
        self._writer = writer
        self._first = first
        self._window_rows = window_rows
        self._window_s = window_s
        self._segments = [new_log_name(writer)]
        self._buffer = bytearray(first)
        self._rows = 0
        self._uploaded = 0
        self._opened_at: float | None = None
        self._error: Exception | None = None
        self._closed = False
        self._lock = threading.RLock()
        self._sealed: queue.Queue[tuple[Path, str, LogKeys] | None] = queue.Queue(WAITING_SEGMENTS)
        self._thread = threading.Thread(target=self._upload, name="batch_infer-ledger", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """See `Log.check`."""
        if self._error is not None:
            raise self._failed()

    def append(self, frame: bytes, key: str | None = None, rank: int = 0) -> None:
        """See `Log.append`. Waits when uploads do not keep up."""
        self.check()
        with self._lock:
            if key is not None:
                self._rows += 1
                self._recent.add(key, (rank, len(self._buffer), len(frame), len(self._segments) - 1))
            self._buffer += frame
            if self._opened_at is None:
                self._opened_at = time.monotonic()
            due = self._rows >= self._window_rows or len(self._buffer) >= SEGMENT_BYTES
            sealed = self._seal() if due else None
        if sealed is not None:
            self._sealed.put(sealed)

    def read(self, log: int, offset: int, length: int) -> bytes:
        """See `Log.read`."""
        with self._lock:
            if log == len(self._segments) - 1:
                return bytes(self._buffer[offset : offset + length])
        return self._files.read(log_path(self._segments[log]), offset, length)

    def close(self) -> None:
        """See `Log.close`. Raises `SinkError` when something could not be uploaded."""
        if self._closed:
            return
        self._closed = True
        with self._lock:
            sealed = self._seal() if len(self._buffer) > len(self._first) else None
        if sealed is not None:
            self._sealed.put(sealed)
        self._sealed.put(None)
        self._thread.join()
        if self._error is not None:
            raise self._failed()

    def _seal(self) -> tuple[Path, str, LogKeys]:
        """Ends the open segment. It is on this machine's disk from here on, where `read` finds it."""
        name, size = self._segments[-1], len(self._buffer)
        columns = self._recent.settle()
        scratch = self._files.scratch(LOG)
        scratch.write_bytes(self._buffer)
        self._files.keep(scratch, log_path(name))
        self._segments.append(new_log_name(self._writer))
        self._buffer = bytearray(self._first)
        self._rows = 0
        self._opened_at = None
        here = columns._replace(log=columns.log * 0)
        return scratch, name, LogKeys(here, Coverage(name, size, size), True, 0, 0)

    def _upload(self) -> None:
        while True:
            try:
                sealed = self._sealed.get(timeout=self._window_s / 4)
            except queue.Empty:
                with self._lock:
                    old = self._opened_at is not None and time.monotonic() - self._opened_at >= self._window_s / 2
                    sealed = self._seal() if old else None
                if sealed is None:
                    continue
            if sealed is None:
                return
            source, name, found = sealed
            try:
                self._files.publish(source, log_path(name))
                self._uploaded += found.columns.size
                leave_keys(self._files, name, found)
            except (OSError, pa.ArrowException) as error:
                if self._error is None:
                    self._error = error

    def _failed(self) -> SinkError:
        return SinkError(
            f"The ledger at {self._files.root} cannot be written: {self._error}. {self._uploaded:,} replies that this "
            f"task recorded are kept; at most {self._window_rows:,} a segment that failed are not. {ADVICE}"
        )


def _lock(handle: int) -> None:
    """Shows others that this log is being written; the lock goes with the process, however it ends."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError:
        logger.debug("The ledger's file system has no locks.")

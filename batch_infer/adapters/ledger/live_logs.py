"""Owns seeing, while both run, what other evaluations of the same part of the same stage have recorded.

Where a query filters on a result and also shows it, Spark may evaluate the column twice in one task, in two Python
workers one behind the other. The second sees each row only after the first has recorded it, but in a log that is still
being written, which `reader` leaves alone. With speculation, two attempts of a task run at the same time. So this
follows the growing logs of that stage's partition, and only those. What they hold is right for whoever asks, because
keys are digests: a stage of another session that has the same number is no harm.

On driver and workers.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Sequence

import msgspec

from batch_infer.adapters.ledger.catalog import log_prefix
from batch_infer.adapters.ledger.files import LOG, Files
from batch_infer.adapters.ledger.memtable import Recent
from batch_infer.adapters.ledger.records import Heading, decode_heading, decode_outcome, payload_of, precedence
from batch_infer.adapters.ledger.scan import Scan
from batch_infer.contract.reply import Outcome

LISTING_INTERVAL_S = 1.0
"""Seconds between listings of the folder: a twin that appears later than the first `find` is no hurry."""


class TwinLogs:
    """Finds outcomes in the growing logs of other writers, whose names begin as this one's does.

    Contract: costs a listing of the folder a second at most, and reads what is new once. Local and mounted paths only.

    Args:
        files: The ledger.
        name: What the writers' names begin with: the stage and the partition.
        own: The file name of this writer's log.
        is_read: Whether a log was complete and is known to the reader already.
    """

    def __init__(self, files: Files, name: str, own: str, is_read: Callable[[str], bool]) -> None:
        self._folder = files.near(LOG)
        self._prefix = log_prefix(name)
        self._is_read = is_read
        self._names = {own}
        self._next_listing = 0.0
        self._handles: list[int] = []
        self._ends: list[int] = []
        self._recent = Recent()

    def find(self, keys: Sequence[str]) -> dict[str, Outcome]:
        """Outcomes of these keys that a twin has recorded by now."""
        self._follow()
        found: dict[str, Outcome] = {}
        for key, (_, offset, length, log) in self._recent.find(keys).items():
            payload = payload_of(os.pread(self._handles[log], length, offset))
            try:
                outcome = decode_outcome(payload) if payload is not None else None
            except msgspec.MsgspecError:
                continue
            if outcome is not None and outcome[0] == key:
                found[key] = outcome[1]
        return found

    def close(self) -> None:
        """Closes the logs. Idempotent."""
        while self._handles:
            os.close(self._handles.pop())

    def _follow(self) -> None:
        if time.monotonic() >= self._next_listing:
            self._next_listing = time.monotonic() + LISTING_INTERVAL_S
            self._look_for_more()
        for log, handle in enumerate(self._handles):
            size = os.fstat(handle).st_size
            if size > self._ends[log]:
                self._take_in(log, handle, size)

    def _look_for_more(self) -> None:
        for name in os.listdir(self._folder):  # noqa: PTH208 - names are all that is needed, thousands of them
            if not (name.startswith(self._prefix) and name.endswith(".log")) or name in self._names:
                continue
            self._names.add(name)
            if self._is_read(name):
                continue
            with contextlib.suppress(FileNotFoundError):  # it was empty, and its writer has closed it
                self._handles.append(os.open(self._folder / name, os.O_RDONLY | os.O_CLOEXEC))
                self._ends.append(0)

    def _take_in(self, log: int, handle: int, size: int) -> None:
        scan = Scan(lambda offset, length: os.pread(handle, length, offset), size, self._ends[log])
        for offset, length, payload in scan:
            try:
                record = decode_heading(payload)
            except msgspec.MsgspecError:
                continue
            if isinstance(record, Heading):
                rank = precedence(record.at_us, fresh=record.fresh, failed=record.failed)
                self._recent.add(record.key, (rank, offset, length, log))
                if self._recent.is_full():
                    self._recent.settle()
        self._ends[log] = scan.end

"""Owns seeing, while both run, what the other evaluations of the same column in the same task have recorded.

Where a query filters on a result and also shows it, Spark may evaluate the column twice in one task, in two Python
workers one behind the other. The second sees each row only after the first has recorded it, but in a log that is still
being written, which `reader` leaves alone. So this follows the logs of the same task attempt, and only those.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import msgspec

from batch_infer.adapters.ledger.catalog import log_prefix
from batch_infer.adapters.ledger.files import LOG, Files
from batch_infer.adapters.ledger.recent import Recent
from batch_infer.adapters.ledger.scan import Scan
from batch_infer.contract.ledger import Heading, decode_heading, decode_outcome, payload_of, precedence
from batch_infer.contract.reply import Outcome


class TwinLogs:
    """Finds answers in the growing logs of one task attempt, other than the writer's own.

    Contract: costs a listing of the folder for each `find`, and reads what is new once. Local and mounted paths only.

    Args:
        files: The ledger.
        writer: The name that the task attempt's writers share.
        own: The file name of this writer's log.
    """

    def __init__(self, files: Files, writer: str, own: str) -> None:
        self._folder = files.near(LOG)
        self._prefix = log_prefix(writer)
        self._own = own
        self._names: list[str] = []
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
        for name in os.listdir(self._folder):  # noqa: PTH208 - names are all that is needed, thousands of them
            is_twin = name.startswith(self._prefix) and name.endswith(".log") and name != self._own
            if is_twin and name not in self._names:
                self._names.append(name)
                self._handles.append(os.open(self._folder / name, os.O_RDONLY | os.O_CLOEXEC))
                self._ends.append(0)
        for log, handle in enumerate(self._handles):
            size = os.fstat(handle).st_size
            if size > self._ends[log]:
                self._take_in(log, handle, size)

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

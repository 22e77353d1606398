"""Owns one task attempt's writing to the ledger. Does not look up what others wrote.

`LedgerWriter` is for one thread (the event loop); any number of writers may work on one ledger at the same time.

On driver and workers.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from batch_infer.adapters.ledger.append import GrowingLog, Log, SegmentLog
from batch_infer.adapters.ledger.files import Files, open_files
from batch_infer.adapters.ledger.live_logs import TwinLogs
from batch_infer.adapters.ledger.memtable import Recent
from batch_infer.adapters.ledger.records import (
    FORMAT,
    Intent,
    LogStart,
    Recorded,
    decode_outcome,
    encode,
    payload_of,
    precedence,
)
from batch_infer.contract.errors import SinkError
from batch_infer.contract.reply import Outcome
from batch_infer.contract.say_once import SayOnce

logger = logging.getLogger(__name__)

LOSS_WINDOW_ROWS = 500
"""Replies that a killed task loses at most, on a store without append; also the size of a segment."""
LOSS_WINDOW_S = 5.0
"""Seconds after which a segment is uploaded although it is not full."""
MIN_FREE_BYTES = 16 * 1024 * 1024
"""Room for the replies to what is already in flight, when the disk fills up."""

said = SayOnce(logger)
"""What this process has said of ledgers."""


class LedgerWriter:
    """Appends intents and outcomes to a log of its own.

    Contract: on a local or mounted path what `intend` and `record` wrote survives a SIGKILL of the process from the
    moment they return (not a power cut before `close`). On other stores a segment of at most `loss_window_rows` and
    `loss_window_s` is lost with the process; that is logged once.

    Args:
        root: The ledger, as `open_files` takes it, or an open one.
        name: Names the task attempt, for people; what makes it unique is added.
        loss_window_rows: Only for stores without append.
        loss_window_s: Only for stores without append.
        min_free_bytes: Below it no intent is accepted, so that nothing is asked whose reply may not fit. 0: never.
        clock: Seconds since 1970.

    Raises:
        SinkError: the ledger cannot be written; nothing was sent yet.
    """

    def __init__(
        self,
        root: str | Path | Files,
        name: str,
        *,
        loss_window_rows: int = LOSS_WINDOW_ROWS,
        loss_window_s: float = LOSS_WINDOW_S,
        min_free_bytes: int = MIN_FREE_BYTES,
        clock: Callable[[], float] = time.time,
    ) -> None:
        files = open_files(root) if isinstance(root, (str, Path)) else root
        self._clock = clock
        self._recent = Recent()
        self._files = files
        self._name = name
        files.prepare()
        first = encode(LogStart(FORMAT, name, self.now_us()))
        self._log: Log
        if files.grows:
            self._log = GrowingLog(files, name, self._recent, first, min_free_bytes)
        else:
            self._log = SegmentLog(
                files, name, self._recent, first, window_rows=loss_window_rows, window_s=loss_window_s
            )
            said.warning(
                files.root,
                "The ledger at %s is on a store without append: a killed task loses up to %d replies, or those of the "
                "last %g seconds, and pays for them again. A local or mounted path loses none.",
                files.root,
                loss_window_rows,
                loss_window_s,
            )

    def intend(self, keys: Sequence[str], endpoint: str = "", run: str = "") -> None:
        """Records that one request for these keys is about to be sent, by this run.

        Raises:
            SinkError: its reply might not be kept; do not send it.
        """
        self._log.check()
        self._log.append(encode(Intent(self.now_us(), tuple(keys), endpoint, run)))

    def record(self, record: Recorded) -> None:
        """Appends one outcome.

        Raises:
            SinkError: it was not kept.
        """
        try:
            frame = encode(record)
        except ValueError as error:
            raise SinkError(f"The reply to request {record.key} was not kept: {error}.") from error
        rank = precedence(record.at_us, fresh=record.fresh, failed=record.failed)
        self._log.append(frame, record.key, rank)

    def find(self, keys: Sequence[str]) -> dict[str, Outcome]:
        """Outcomes that this writer recorded itself."""
        found = {}
        for key, (_, offset, length, log) in self._recent.find(keys).items():
            payload = payload_of(self._log.read(log, offset, length))
            try:
                outcome = payload and decode_outcome(payload)
            except msgspec.MsgspecError:
                continue
            if outcome and outcome[0] == key:
                found[key] = outcome[1]
        return found

    def twins(self, name: str, is_read: Callable[[str], bool]) -> TwinLogs | None:
        """The logs of other writers whose names begin with `<name>-`, or are it; `None` on stores without append.

        `is_read`: see `TwinLogs`.
        """
        return TwinLogs(self._files, name, self._log.name, is_read) if isinstance(self._log, GrowingLog) else None

    def now_us(self) -> int:
        """The time to record, in microseconds since 1970."""
        return int(self._clock() * 1_000_000)

    def close(self) -> None:
        """Finishes the log and leaves its sorted keys beside it. Idempotent; without it the log is scanned later.

        Raises:
            SinkError: on stores without append, when the last segments could not be uploaded.
        """
        self._log.close()

"""Owns finding replies by key. Does not write anything but, when much is not indexed yet, the index.

keys ─▶ key files of index/ (memory-mapped)          ─┐
     ─▶ keys of logs not in them yet (in memory)     ─┴▶ place of the best answer ─▶ the log ─▶ Outcome

On driver and workers.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from batch_infer.adapters.ledger import audit as auditing
from batch_infer.adapters.ledger import indexing, purging, table
from batch_infer.adapters.ledger.catalog import (
    LogFile,
    covered,
    current_logs,
    keys_of,
    log_path,
    open_index,
)
from batch_infer.adapters.ledger.files import LOG, Files, open_files
from batch_infer.adapters.ledger.keys import (
    EMPTY,
    Columns,
    Coverage,
    KeyFile,
    best,
    halves,
    joined,
    positions,
    renumbered,
)
from batch_infer.adapters.ledger.records import LEAST_ANSWER, decode_outcome, payload_of
from batch_infer.contract.errors import ConfigError
from batch_infer.contract.reply import Outcome

OPEN_LOGS = 128
"""Log files that one process keeps open."""
LISTINGS = 3
"""Attempts to list the directory when what was listed is gone by the time it is opened."""
INDEX_ABOVE_ENTRIES = 500_000
"""More keys than this outside the index (20 MB) are merged into it by whoever finds them."""
INDEX_ABOVE_LOGS = 256
"""The same for logs: each one outside the index costs every new worker the opening of its keys."""


class Ledger:
    """What has been paid for, found by `request_key`. Make one with `Ledger.open`.

    Contract: sees what was recorded before `open` or the last `refresh`, except the logs of other live writers, which
    are seen once they are closed or their process is dead. Thread-safe. Memory: the mapped key files are the page
    cache's; what is not indexed costs 40 bytes a key.
    """

    def __init__(self, files: Files) -> None:
        self._files = files
        self._index: dict[str, KeyFile] = {}
        self._covered: dict[str, Coverage] = {}
        self._delta = EMPTY
        self._delta_logs: list[str] = []
        self._loaded: dict[str, Coverage] = {}
        self._open: OrderedDict[str, int] = OrderedDict()
        self._lock = threading.RLock()
        self.unreadable = 0
        """Answers that were indexed but could not be read (a damaged record): they are asked for again."""

    @classmethod
    def open(cls, root: str | Path | Files, *, cache: Path | None = None) -> Ledger:
        """The ledger at a path or URI; an empty one where there is nothing yet.

        Args:
            root: See `open_files`.
            cache: See `open_files`.

        Raises:
            SinkError: it cannot be opened.
        """
        files = open_files(root, cache) if isinstance(root, (str, Path)) else root
        ledger = cls(files)
        ledger.refresh()
        return ledger

    @classmethod
    def existing(cls, root: str | Path) -> Ledger:
        """The ledger at a path or URI, where there is one.

        Raises:
            ConfigError: there is none.
            SinkError: it cannot be opened.
        """
        files = open_files(root)
        if files.exists():
            return cls.open(files)
        beside = f"{str(root).rstrip('/')}.ledger"
        hint = f" Did you mean {beside}?" if open_files(beside).exists() else ""
        raise ConfigError(
            f"there is no ledger at {root}.{hint} Give the path that a job prints as its ledger (a folder that holds "
            f"{LOG!r}), or that of the setting spark.batch_infer.ledger."
        )

    @property
    def files(self) -> Files:
        """The ledger's directory."""
        return self._files

    def refresh(self) -> None:
        """Takes in what others wrote since: a directory listing, and whatever is new. Cheap when nothing is."""
        with self._lock:
            for _ in range(LISTINGS):
                if self._load(current_logs(self._files)[0]):
                    break
            is_much = self._delta.size > INDEX_ABOVE_ENTRIES or len(self._loaded) > INDEX_ABOVE_LOGS
            if is_much and self._files.grows:
                indexing.compact_index(self._files, wait=False)
                self._load(current_logs(self._files)[0])

    def reads(self, log: str) -> bool:
        """Whether `find` looks into this log: it was complete at the last `refresh`."""
        with self._lock:
            return log in self._covered or log in self._loaded

    def find(self, keys: Sequence[str], *, failures: bool = False) -> dict[str, Outcome]:
        """The answers to these keys, as far as there are any.

        Contract: `from_ledger` is set; usage, attempts and latency are as they were when it was paid for. Of
        several answers to one key the newest fresh one is given, else the oldest.

        Args:
            keys: 32 hexadecimal digits each; may repeat.
            failures: Of a key without an answer, also give its newest failure.
        """
        if not keys:
            return {}
        with self._lock:
            least = 1 if failures else LEAST_ANSWER
            found: dict[str, Outcome] = {}
            if not self._read(self._places(keys, least), found):
                self.refresh()
                self._read(self._places(keys, least), found)
            return found

    def _places(self, keys: Sequence[str], least: int) -> dict[str, list[tuple[int, int, str]]]:
        """Of each log, what to read: `(offset, length, key)`."""
        high, low = halves(keys)
        rank = np.full(len(keys), least - 1, dtype=np.uint64)
        offset = np.zeros(len(keys), dtype=np.uint64)
        length = np.zeros(len(keys), dtype=np.uint32)
        log = np.zeros(len(keys), dtype=np.int64)
        names: list[str] = []
        sources: list[tuple[Columns, list[str]]] = [
            (file.columns, [item.log for item in file.footer.logs]) for file in self._index.values()
        ]
        for columns, logs in [*sources, (self._delta, self._delta_logs)]:
            rows = positions(columns, high, low)
            hits = np.flatnonzero(rows >= 0)
            hits = hits[columns.rank[rows[hits]] > rank[hits]]
            chosen = rows[hits]
            rank[hits] = columns.rank[chosen]
            offset[hits] = columns.offset[chosen]
            length[hits] = columns.length[chosen]
            log[hits] = columns.log[chosen].astype(np.int64) + len(names)
            names += logs
        places: dict[str, list[tuple[int, int, str]]] = {}
        for i in np.flatnonzero(length).tolist():
            places.setdefault(names[log[i]], []).append((int(offset[i]), int(length[i]), keys[i]))
        return places

    def _read(self, places: Mapping[str, list[tuple[int, int, str]]], found: dict[str, Outcome]) -> bool:
        """Reads answers into `found`; whether all logs were still there: a purge replaces them."""
        complete = True
        for name, wanted in places.items():
            try:
                handle = self._handle(name)
            except FileNotFoundError:
                complete = False
                continue
            for offset, length, key in sorted(wanted):
                if key in found:
                    continue
                payload = payload_of(os.pread(handle, length, offset))
                try:
                    outcome = None if payload is None else decode_outcome(payload)
                except msgspec.MsgspecError:
                    outcome = None
                if outcome is None or outcome[0] != key:
                    self.unreadable += 1
                else:
                    found[key] = outcome[1]
        return complete

    def _handle(self, name: str) -> int:
        handle = self._open.get(name)
        if handle is None:
            handle = os.open(self._files.near(log_path(name)), os.O_RDONLY | os.O_CLOEXEC)
            self._open[name] = handle
            if len(self._open) > OPEN_LOGS:
                os.close(self._open.popitem(last=False)[1])
        else:
            self._open.move_to_end(name)
        return handle

    def _load(self, logs: dict[str, LogFile]) -> bool:
        """Takes in these logs; whether all of them were still there."""
        self._index = open_index(self._files, logs, self._index)
        self._covered = covered(self._index)
        for name in [name for name in self._open if name not in logs]:
            os.close(self._open.pop(name))
        outside = {name: log for name, log in logs.items() if not _reaches(self._covered.get(name), log)}
        news: list[tuple[str, Columns]] = []
        complete = True
        for name, log in outside.items():
            known = self._loaded.get(name)
            if known is not None and log.size <= known.seen:
                continue
            if not log.has_keys and self._files.busy(log_path(name)):
                continue
            try:
                found = keys_of(self._files, log)
            except FileNotFoundError:
                complete = False
                continue
            self._loaded[name] = found.coverage
            news.append((name, found.columns))
        gone = [name for name in self._loaded if name not in outside]
        if any(name not in logs for name in gone):  # purged: what its answers stood before must be seen again
            self._delta, self._delta_logs, self._loaded = EMPTY, [], {}
            return self._load(logs)
        if news or gone:
            self._rebuild(news, set(gone))
        return complete

    def _rebuild(self, news: list[tuple[str, Columns]], gone: set[str]) -> None:
        """Puts new logs' keys into the delta and takes out those that are indexed now, or no longer there."""
        for name in gone:
            del self._loaded[name]
        replaced = gone | {name for name, _ in news}
        old = self._delta
        if replaced:
            dropped = np.array([name in replaced for name in self._delta_logs] or [False])
            old = old.take(~dropped[old.log])
        names = sorted(self._loaded)
        numbers = {name: number for number, name in enumerate(names)}
        kept = [name if name in numbers else names[0] if names else "" for name in self._delta_logs]
        parts = [renumbered(columns, [name], numbers) for name, columns in news]
        if old.size:
            parts.insert(0, renumbered(old, kept, numbers))
        self._delta = best(joined(parts))
        self._delta_logs = names

    # Maintenance

    def compact_index(self) -> int:
        """Merges the keys of finished logs into few key files; the number of key files. Run by the driver."""
        count = indexing.compact_index(self._files)
        self.refresh()
        return count

    def compact(self) -> int:
        """Brings the inference table in `table/` up to date; the rows added. See `table.compact`."""
        return table.compact(self._files)

    def audit(self, *, run: str | None = None) -> auditing.Audit:
        """Reads every record and adds them up. See `audit.audit`."""
        return auditing.audit(self._files, run)

    def batches(self) -> Iterator[Any]:
        """The inference table as `pyarrow.RecordBatch`es of `table.SCHEMA`, straight from the logs."""
        return table.batches(self._files)

    def to_arrow(self) -> Any:
        """The inference table as one `pyarrow.Table`; all of it in memory."""
        return table.to_arrow(self._files)

    def purge(
        self, *, older_than: timedelta | None = None, endpoint: str | None = None, keys: Sequence[str] | None = None
    ) -> purging.Purged:
        """Deletes records for good. See `purging.purge`."""
        purged = purging.purge(self._files, older_than=older_than, endpoint=endpoint, keys=keys)
        self.refresh()
        return purged

    def close(self) -> None:
        """Closes the logs it has open. It can be used again."""
        with self._lock:
            while self._open:
                os.close(self._open.popitem()[1])


def _reaches(coverage: Coverage | None, log: LogFile) -> bool:
    return coverage is not None and coverage.seen >= log.size

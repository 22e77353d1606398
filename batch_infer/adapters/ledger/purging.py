"""Owns deleting records for good: by age, endpoint or key. Does not decide what is kept for how long.

On driver and workers.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import msgspec

from batch_infer.adapters.ledger import indexing, table
from batch_infer.adapters.ledger.catalog import (
    LogFile,
    current_logs,
    keys_path,
    leave_keys,
    log_path,
    next_generation,
    scan_keys,
    scan_of,
)
from batch_infer.adapters.ledger.files import LOG, Files
from batch_infer.adapters.ledger.records import Heading, Intent, LogStart, decode_heading, encode, frame
from batch_infer.contract.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Purged:
    """What a purge did."""

    outcomes: int
    """Outcomes deleted."""
    intents: int
    """Intents deleted, counted by key."""
    logs: int
    """Logs rewritten."""
    damaged: int
    """Damaged records that were in these logs, and are gone with them."""
    freed_bytes: int
    busy: tuple[str, ...]
    """Logs that were left alone because a live task is writing to them: purge again when it is done."""


class _Condition:
    """Which records go: those to which everything given applies."""

    def __init__(self, older_than: timedelta | None, endpoint: str | None, keys: Sequence[str] | None) -> None:
        self._before_us = None if older_than is None else int((time.time() - older_than.total_seconds()) * 1e6)
        self._endpoint = endpoint
        self._keys = None if keys is None else frozenset(keys)

    def outcome(self, record: Heading) -> bool:
        return self._shared(record.at_us, record.endpoint) and (self._keys is None or record.key in self._keys)

    def intent(self, record: Intent) -> tuple[str, ...]:
        """The keys of an intent that stay."""
        if not self._shared(record.at_us, record.endpoint):
            return record.keys
        return () if self._keys is None else tuple(key for key in record.keys if key not in self._keys)

    def _shared(self, at_us: int, endpoint: str) -> bool:
        return (self._before_us is None or at_us < self._before_us) and self._endpoint in (None, endpoint)


def purge(
    files: Files, *, older_than: timedelta | None = None, endpoint: str | None = None, keys: Sequence[str] | None = None
) -> Purged:
    """Deletes the records to which all that is given applies, from the logs, the index and the table.

    Contract: a log is rewritten beside the old one, and replaces it when it is whole; killed at any point, each record
    is there once, or gone, and the next maintenance clears what is left over. Logs of live tasks are left alone.

    Args:
        files: The ledger.
        older_than: Records of that age, by the clock of this machine.
        endpoint: Records of the endpoint of this name.
        keys: Records of these `request_key`s.

    Raises:
        ConfigError: nothing was given, or an age below 0.
    """
    if older_than is None and endpoint is None and keys is None:
        raise ConfigError("purge() needs `older_than`, `endpoint` or `keys`: delete the directory to delete it all.")
    if older_than is not None and older_than < timedelta(0):
        raise ConfigError(f"purge(older_than={older_than}): an age is not below 0.")
    condition = _Condition(older_than, endpoint, keys)
    files.prepare()
    outcomes = intents = rewritten = damaged = freed = 0
    busy = []
    tabled = False
    with files.maintaining(wait=True):
        logs, _ = current_logs(files)
        for log in logs.values():
            if not log.size:
                continue
            if files.busy(log_path(log.name)):
                busy.append(log.name)
                continue
            scratch = files.scratch(LOG)
            try:
                gone = _rewrite(files, log, condition, scratch)
            except FileNotFoundError:
                continue
            if not gone[0] and not gone[1]:
                scratch.unlink()
                continue
            freed += log.size - scratch.stat().st_size
            tabled |= table.forget(files, log.name)
            _replace(files, log, scratch)
            outcomes, intents, damaged = outcomes + gone[0], intents + gone[1], damaged + gone[2]
            rewritten += 1
    if rewritten:
        indexing.compact_index(files)
    if tabled:
        table.compact(files)
    return Purged(
        outcomes=outcomes, intents=intents, logs=rewritten, damaged=damaged, freed_bytes=freed, busy=tuple(busy)
    )


def _rewrite(files: Files, log: LogFile, condition: _Condition, target: Path) -> tuple[int, int, int]:
    """Copies what stays; the outcomes, intents and damaged records that do not."""
    scan = scan_of(files, log)
    outcomes = intents = undecodable = 0
    with target.open("wb") as file:
        target.chmod(0o600)
        for _, _, payload in scan:
            try:
                record = decode_heading(payload)
            except msgspec.MsgspecError:
                undecodable += 1
                continue
            if isinstance(record, Intent):
                kept = condition.intent(record)
                intents += len(record.keys) - len(kept)
                if not kept:
                    continue
                if len(kept) < len(record.keys):
                    file.write(encode(msgspec.structs.replace(record, keys=kept)))
                    continue
            elif not isinstance(record, LogStart) and condition.outcome(record):
                outcomes += 1
                continue
            file.write(frame(payload))
    return outcomes, intents, undecodable + scan.corrupt + scan.torn


def _replace(files: Files, log: LogFile, scratch: Path) -> None:
    name = next_generation(log.name)
    size = scratch.stat().st_size
    files.publish(scratch, log_path(name))  # from here on the old log is not current
    leave_keys(files, name, scan_keys(files, LogFile(name, size, False))._replace(closed=True))
    files.delete(keys_path(log.name))
    files.delete(log_path(log.name))

"""Owns merging key files, so that a lookup has few of them to search. Does not change logs. On driver and workers."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

from batch_infer.adapters.ledger.catalog import (
    LogFile,
    LogKeys,
    covered,
    current_logs,
    keys_of,
    keys_path,
    leave_keys,
    log_path,
    new_index_path,
    open_index,
)
from batch_infer.adapters.ledger.files import INDEX, Files
from batch_infer.adapters.ledger.keys import Columns, KeyFile, best, joined, merge, open_key_file, renumbered, write

RATIO = 4
"""A key file is merged with the next larger one when that is less than so many times its size: with it, 20 million
keys are in a handful of files, and each key is rewritten a handful of times."""
MAX_KEY_FILES = 8
GATHER_ENTRIES = 2_000_000
"""Keys of logs that are sorted in memory at a time (80 MB)."""


def compact_index(files: Files, *, wait: bool = True) -> int:
    """Merges the keys of all logs that nobody writes to any more; the number of key files there are then.

    Contract: safe beside readers, writers and another call, and to be killed at any point: key files appear whole, and
    one that covers nothing new is deleted. Logs without keys (a killed attempt) are scanned, and get theirs. Runs where
    the ledger can be written, usually the driver.

    Args:
        files: The ledger.
        wait: For another maintenance that is running; else do nothing while it does.
    """
    files.prepare()
    with files.maintaining(wait=wait) as alone:
        if not alone:
            return len(files.sizes(INDEX))
        return _compact(files)


def _compact(files: Files) -> int:
    logs, replaced = current_logs(files)
    for name in replaced:  # a purge was cut short after its new log was there
        files.delete(keys_path(name))
        files.delete(log_path(name))
    index = open_index(files, logs, {})
    for name in files.sizes(INDEX):
        if name not in index:
            files.delete(f"{INDEX}/{name}")
    _index_new(files, logs, index)
    while (pair := _next_pair(index)) is not None:
        _merge(files, index, pair)
    return len(index)


def _index_new(files: Files, logs: dict[str, LogFile], index: dict[str, KeyFile]) -> None:
    """Puts the keys of logs that the index does not cover into key files of their own."""
    coverage = covered(index)
    gathered: list[LogKeys] = []
    for name, log in logs.items():
        known = coverage.get(name)
        if (known is not None and known.seen >= log.size) or (not log.has_keys and files.busy(log_path(name))):
            continue
        try:
            found = keys_of(files, log, verify=True)
        except FileNotFoundError:
            continue
        if not found.closed:
            leave_keys(files, name, found)
        gathered.append(found)
        if sum(item.columns.size for item in gathered) >= GATHER_ENTRIES:
            _add(files, index, gathered)
            gathered = []
    if gathered:
        _add(files, index, gathered)


def _add(files: Files, index: dict[str, KeyFile], gathered: list[LogKeys]) -> None:
    gathered = sorted(gathered, key=lambda item: item.coverage.log)
    names = [item.coverage.log for item in gathered]
    numbers = {name: number for number, name in enumerate(names)}
    columns: Columns = best(joined(renumbered(item.columns, [item.coverage.log], numbers) for item in gathered))
    scratch = files.scratch(INDEX)
    write(scratch, [columns], columns.size, [item.coverage for item in gathered], closed=False)
    _take_in(files, index, scratch)


def _merge(files: Files, index: dict[str, KeyFile], names: Iterable[str]) -> None:
    sound = []
    for name in names:
        del index[name]
        file = open_key_file(files.near(f"{INDEX}/{name}"), verify=True)
        if file is None:
            files.delete(f"{INDEX}/{name}")  # damaged: its logs' own keys are still there
        else:
            sound.append((name, file))
    scratch = files.scratch(INDEX)
    merge(scratch, [file for _, file in sound])
    _take_in(files, index, scratch)
    for name, _ in sound:
        files.delete(f"{INDEX}/{name}")


def _take_in(files: Files, index: dict[str, KeyFile], scratch: Path) -> None:
    path = new_index_path()
    files.publish(scratch, path)
    opened = open_key_file(files.near(path))
    assert opened is not None
    index[path.rpartition("/")[2]] = opened


def _next_pair(index: dict[str, KeyFile]) -> tuple[str, str] | None:
    by_size = sorted(index, key=lambda name: index[name].columns.size)
    for small, large in pairwise(by_size):
        if index[large].columns.size < RATIO * max(1, index[small].columns.size):
            return small, large
    return (by_size[0], by_size[1]) if len(by_size) > MAX_KEY_FILES else None

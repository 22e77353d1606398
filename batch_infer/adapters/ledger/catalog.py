"""Owns which logs and key files of a ledger are current, and what each log's keys are. Does not read replies.

The directory listing is the manifest: files are complete when they are listed, and their names are never used twice.
A log that was rewritten (`x.1.log` for `x.0.log`) replaces its earlier generation from the moment it is there. A key
file that mentions a log which is no longer current is not trusted at all.

On driver and workers.
"""

from __future__ import annotations

import contextlib
import re
import secrets
from typing import NamedTuple

import msgspec

from batch_infer.adapters.ledger.files import INDEX, LOG, Files
from batch_infer.adapters.ledger.keys import (
    EMPTY,
    Columns,
    Coverage,
    KeyFile,
    best,
    columns_of,
    joined,
    open_key_file,
    write,
)
from batch_infer.adapters.ledger.records import Heading, decode_heading, precedence
from batch_infer.adapters.ledger.scan import Scan

_LOG_NAME = re.compile(r"(?P<base>.+)\.(?P<generation>\d+)\.log")
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")
SCAN_ENTRIES = 65_536
"""Entries gathered as Python objects before they become columns."""


class LogFile(NamedTuple):
    """A current log."""

    name: str
    size: int
    has_keys: bool


class LogKeys(NamedTuple):
    """The outcomes of one log: its `log` column is 0 throughout."""

    columns: Columns
    coverage: Coverage
    closed: bool
    corrupt: int
    torn: int


def log_prefix(writer: str) -> str:
    """What the names of all logs of writers of this name begin with."""
    return f"{_UNSAFE.sub('-', writer)[:100] or 'log'}-"


def new_log_name(writer: str) -> str:
    """A name that nobody else has, for a new log."""
    return f"{log_prefix(writer)}{secrets.token_hex(6)}.0.log"


def next_generation(name: str) -> str:
    """The name of the log that replaces this one."""
    match = _LOG_NAME.fullmatch(name)
    assert match
    return f"{match['base']}.{int(match['generation']) + 1}.log"


def keys_path(log: str) -> str:
    """Where the keys of a log are."""
    return f"{LOG}/{log.removesuffix('.log')}.keys"


def log_path(log: str) -> str:
    """Where a log is."""
    return f"{LOG}/{log}"


def current_logs(files: Files) -> tuple[dict[str, LogFile], list[str]]:
    """The current logs by name, in the order of their names; and the logs that were replaced but are still there."""
    sizes = files.sizes(LOG)
    newest: dict[str, tuple[int, str]] = {}
    replaced = []
    for name in sizes:
        match = _LOG_NAME.fullmatch(name)
        if match is None:
            continue
        entry = int(match["generation"]), name
        known = newest.get(match["base"])
        if known is not None:
            replaced.append(min(entry, known)[1])
        newest[match["base"]] = entry if known is None else max(entry, known)
    names = sorted(name for _, name in newest.values())
    return {name: LogFile(name, sizes[name], f"{name[:-4]}.keys" in sizes) for name in names}, replaced


def open_index(files: Files, logs: dict[str, LogFile], opened: dict[str, KeyFile]) -> dict[str, KeyFile]:
    """The key files to look in, by name.

    Args:
        files: The ledger.
        logs: The current logs.
        opened: Key files that are open already, to be used again.
    """
    index = {}
    for name in files.sizes(INDEX):
        file = opened.get(name)
        if file is None:
            with contextlib.suppress(OSError):  # merged into another one between the listing and now
                file = open_key_file(files.near(f"{INDEX}/{name}"))
        if file is not None and all(item.log in logs for item in file.footer.logs):
            index[name] = file
    for name, file in list(index.items()):  # left over from a merge that was cut short
        if any(name != other and _within(file, index[other], name < other) for other in index):
            del index[name]
    return index


def covered(index: dict[str, KeyFile]) -> dict[str, Coverage]:
    """How far each log is indexed by key files."""
    coverage: dict[str, Coverage] = {}
    for file in index.values():
        for item in file.footer.logs:
            known = coverage.get(item.log)
            if known is None or item.seen > known.seen:
                coverage[item.log] = item
    return coverage


def new_index_path() -> str:
    """A name that nobody else has, for a new key file."""
    return f"{INDEX}/{secrets.token_hex(8)}.keys"


def keys_of(files: Files, log: LogFile, *, verify: bool = False) -> LogKeys:
    """The keys of a log: from its own key file as far as that goes, and from the log itself after that.

    Args:
        files: The ledger.
        log: A current log.
        verify: Compare the key file's checksum.

    Raises:
        FileNotFoundError: the log is gone.
    """
    known = None
    if log.has_keys:
        with contextlib.suppress(FileNotFoundError):
            known = open_key_file(files.near(keys_path(log.name)), verify=verify)
    if known is None or known.footer.logs[0].log != log.name:
        return scan_keys(files, log)
    coverage = Coverage(*known.footer.logs[0])
    if log.size <= coverage.seen:
        return LogKeys(known.columns, coverage, known.footer.closed, 0, 0)
    rest = scan_keys(files, log, coverage.end)
    return rest._replace(columns=best(joined([known.columns, rest.columns])))


def scan_keys(files: Files, log: LogFile, start: int = 0) -> LogKeys:
    """The keys of a log, from the log itself."""
    scan = scan_of(files, log, start)
    keys: list[str] = []
    places: list[tuple[int, int, int, int]] = []
    parts = []
    for offset, length, payload in scan:
        try:
            record = decode_heading(payload)
        except msgspec.MsgspecError:
            scan.corrupt += 1
            continue
        if isinstance(record, Heading):
            keys.append(record.key)
            rank = precedence(record.at_us, fresh=record.fresh, failed=record.failed)
            places.append((rank, offset, length, 0))
            if len(keys) == SCAN_ENTRIES:
                parts.append(columns_of(keys, places))
                keys, places = [], []
    parts.append(columns_of(keys, places))
    columns = best(joined(parts)) if parts else EMPTY
    return LogKeys(columns, Coverage(log.name, scan.end, log.size), False, scan.corrupt, scan.torn)


def scan_of(files: Files, log: LogFile, start: int = 0) -> Scan:
    """A pass over a log."""
    path = files.near(log_path(log.name))
    handle = path.open("rb", buffering=0)

    def read(offset: int, length: int) -> bytes:
        handle.seek(offset)
        return handle.read(length) or b""

    return Scan(read, log.size, start)


def leave_keys(files: Files, log: str, found: LogKeys) -> None:
    """Leaves a log's keys beside it, so that nobody has to scan it again."""
    scratch = files.scratch(LOG)
    write(scratch, [found.columns], found.columns.size, [found.coverage], closed=found.closed)
    files.publish(scratch, keys_path(log))


def _within(inner: KeyFile, outer: KeyFile, first: bool) -> bool:
    """Whether all that one key file covers is covered by another; of two equal ones, the `first` one is."""
    reach = {item.log: item.seen for item in outer.footer.logs}
    if any(reach.get(item.log, -1) < item.seen for item in inner.footer.logs):
        return False
    return (
        first or len(reach) > len(inner.footer.logs) or any(reach[item.log] > item.seen for item in inner.footer.logs)
    )

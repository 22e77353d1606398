"""Owns key files: sorted keys with the place of each one's answer, written once and then memory-mapped.

Columns, one after the other, each of `capacity` entries, then a footer:

    high u64 · low u64 · rank u64 · offset u64 · length u32 · log u32 · footer (JSON) · its length, CRC-32 and magic

`high` and `low` are the halves of the 16-byte key, in ascending order; `rank` is `ledger.records.precedence`; `log` is
an index into the footer's `logs`. 40 bytes a key. Does not know where key files are kept nor which are current.

On driver and workers.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]
U32 = npt.NDArray[np.uint32]

ENTRY_BYTES = 40
MERGE_ENTRIES = 1_000_000
"""Entries that a merge holds in memory at a time, about."""

_TAIL = struct.Struct("<II8s")
_MAGIC = b"BILKEYS1"
_WIDTHS = (8, 8, 8, 8, 4, 4)


class Columns(NamedTuple):
    """Places of answers, one an entry."""

    high: U64
    low: U64
    rank: U64
    offset: U64
    length: U32
    log: U32

    def take(self, rows: Any) -> Columns:
        """The same rows of every column: a slice, a mask or indexes."""
        taken: list[Any] = [column[rows] for column in self]
        return Columns(*taken)

    @property
    def size(self) -> int:
        """Entries."""
        return len(self.high)


class Coverage(NamedTuple):
    """How far a log is indexed."""

    log: str
    end: int
    """After the last sound record."""
    seen: int
    """The log's size when it was read; a larger one means that it grew."""


class Footer(msgspec.Struct, frozen=True):
    """What a key file says of itself."""

    count: int
    capacity: int
    logs: list[Coverage]
    closed: bool
    """Of one log: its writer has finished."""
    checksum: int


class KeyFile(NamedTuple):
    """An open key file."""

    columns: Columns
    footer: Footer


def halves(keys: Sequence[str]) -> tuple[U64, U64]:
    """Keys of 32 hexadecimal digits as the numbers that key files are sorted by."""
    pairs = np.frombuffer(bytes.fromhex("".join(keys)), dtype=">u8").reshape(-1, 2).astype(np.uint64)
    return np.ascontiguousarray(pairs[:, 0]), np.ascontiguousarray(pairs[:, 1])


def columns_of(keys: Sequence[str], places: Sequence[tuple[int, int, int, int]]) -> Columns:
    """Entries from keys and their `(rank, offset, length, log)`, as they come."""
    if not keys:
        return EMPTY
    high, low = halves(keys)
    numbers = np.array(places, dtype=np.uint64)
    return Columns(
        high,
        low,
        np.ascontiguousarray(numbers[:, 0]),
        np.ascontiguousarray(numbers[:, 1]),
        numbers[:, 2].astype(np.uint32),
        numbers[:, 3].astype(np.uint32),
    )


_NO_U64, _NO_U32 = np.empty(0, np.uint64), np.empty(0, np.uint32)
EMPTY = Columns(_NO_U64, _NO_U64, _NO_U64, _NO_U64, _NO_U32, _NO_U32)


def best(columns: Columns) -> Columns:
    """Sorted by key, and of each key the entry of the highest rank; equal ranks are settled by log and offset."""
    order = np.argsort(columns.high, kind="stable")
    high = columns.high[order]
    equal = np.flatnonzero(high[1:] == high[:-1])
    if not len(equal):
        return columns.take(order)
    tied = np.union1d(equal, equal + 1)
    rows = order[tied]
    some = columns.take(rows)
    order[tied] = rows[np.lexsort((some.offset, some.log, ~some.rank, some.low, some.high))]
    columns = columns.take(order)
    first = np.ones(columns.size, dtype=bool)
    first[1:] = (columns.high[1:] != columns.high[:-1]) | (columns.low[1:] != columns.low[:-1])
    return columns.take(first)


def joined(parts: Iterable[Columns]) -> Columns:
    """The entries of all parts, one after the other."""
    listed = list(parts)
    return Columns(*(np.concatenate(column) for column in zip(*listed, strict=True))) if listed else EMPTY


def positions(columns: Columns, high: U64, low: U64) -> npt.NDArray[np.int64]:
    """The row of each key in sorted columns, -1 where there is none."""
    count = columns.size
    if not count:
        return np.full(len(high), -1, dtype=np.int64)
    rows = np.searchsorted(columns.high, high).astype(np.int64)
    inside = np.minimum(rows, count - 1)
    same = (rows < count) & (columns.high[inside] == high)
    other = np.flatnonzero(same & (columns.low[inside] != low))
    for i in other:  # two keys with equal first halves: one in 2**64
        row = int(rows[i])
        while row < count and columns.high[row] == high[i] and columns.low[row] != low[i]:
            row += 1
        rows[i] = row
        same[i] = row < count and columns.high[row] == high[i]
    return np.where(same, rows, -1)


def renumbered(columns: Columns, names: Sequence[str], numbers: dict[str, int]) -> Columns:
    """The same entries with `log` as an index into another list of names."""
    table = np.array([numbers[name] for name in names] or [0], dtype=np.uint32)
    return columns._replace(log=table[columns.log])


def write(path: Path, parts: Iterable[Columns], capacity: int, logs: Sequence[Coverage], *, closed: bool) -> int:
    """Writes sorted parts, one after the other, as a key file; the number of entries.

    Args:
        path: A new file.
        parts: Sorted, and in ascending order of each other.
        capacity: At least as many entries as there will be.
        logs: What `log` points to.
        closed: See `Footer`.
    """
    count = 0
    starts = [capacity * sum(_WIDTHS[:i]) for i in range(len(_WIDTHS))]
    with path.open("wb+") as file:
        path.chmod(0o600)
        for part in parts:
            for column, start, width in zip(part, starts, _WIDTHS, strict=True):
                file.seek(start + count * width)
                file.write(np.ascontiguousarray(column, dtype=f"<u{width}").data)
            count += part.size
        file.truncate(capacity * ENTRY_BYTES)
        file.seek(0)
        footer = msgspec.json.encode(Footer(count, capacity, list(logs), closed, _checksum(file, capacity)))
        file.seek(capacity * ENTRY_BYTES)
        file.write(footer + _TAIL.pack(len(footer), zlib.crc32(footer), _MAGIC))
    return count


def open_key_file(path: Path, *, verify: bool = False) -> KeyFile | None:
    """Maps a key file into memory; `None` when it is gone, or not one, or damaged.

    Args:
        path: On this machine.
        verify: Read it all and compare its checksum.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _TAIL.size))
            length, checksum, magic = _TAIL.unpack(file.read(_TAIL.size))
            file.seek(max(0, size - _TAIL.size - length))
            text = file.read(length)
            if magic != _MAGIC or zlib.crc32(text) != checksum:
                return None
            footer = msgspec.json.decode(text, type=Footer)
            if size != footer.capacity * ENTRY_BYTES + length + _TAIL.size:
                return None
            file.seek(0)
            if verify and _checksum(file, footer.capacity) != footer.checksum:
                return None
            if not footer.count:
                return KeyFile(EMPTY, footer)
            mapped = np.memmap(file, dtype=np.uint8, mode="r")
    except (OSError, struct.error, msgspec.MsgspecError, ValueError):
        return None
    columns = []
    start = 0
    for width in _WIDTHS:
        column = np.frombuffer(mapped, dtype=f"<u{width}", count=footer.count, offset=start)
        columns.append(column)
        start += width * footer.capacity
    return KeyFile(Columns(*columns), footer)


def merge(path: Path, sources: Sequence[KeyFile]) -> int:
    """Merges key files into a new one, a range of keys at a time; the number of its entries.

    Contract: memory is bounded by `MERGE_ENTRIES`, whatever the size of the sources, because keys are digests and so
    spread evenly.
    """
    ends: dict[str, Coverage] = {}
    for source in sources:
        for item in source.footer.logs:
            known = ends.get(item.log)
            ends[item.log] = item if known is None or item.seen > known.seen else known
    names = sorted(ends)
    numbers = {name: number for number, name in enumerate(names)}
    total = sum(source.columns.size for source in sources)
    ranges = total // MERGE_ENTRIES + 1
    bounds = np.array([(1 << 64) * i // ranges for i in range(1, ranges)], dtype=np.uint64)
    cuts = [[0, *np.searchsorted(source.columns.high, bounds).tolist(), source.columns.size] for source in sources]

    def parts() -> Iterable[Columns]:
        for i in range(ranges):
            yield best(
                joined(
                    renumbered(
                        source.columns.take(slice(cut[i], cut[i + 1])),
                        [item.log for item in source.footer.logs],
                        numbers,
                    )
                    for source, cut in zip(sources, cuts, strict=True)
                )
            )

    return write(path, parts(), total, [ends[name] for name in names], closed=False)


def _checksum(file: Any, capacity: int) -> int:
    checksum, left = 0, capacity * ENTRY_BYTES
    while left > 0:
        chunk = file.read(min(left, 8 * 1024 * 1024))
        if not chunk:
            break
        checksum = zlib.crc32(chunk, checksum)
        left -= len(chunk)
    return checksum

"""Owns the inference table: outcomes as Arrow, and as Parquet files under `table/`. Does not delete outcomes.

The logs stay the truth; the Parquet files are copies, for SQL. Each file says in its own footer which part of which
logs it holds, so that a file and the knowledge of what is in it appear in one rename: a compaction that is killed
leaves nothing half done, and the next one goes on where the last whole file ends.

On driver and workers.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from batch_infer.adapters.arrow_types import array_of_records, arrow_type
from batch_infer.adapters.ledger.catalog import LogFile, current_logs, scan_of
from batch_infer.adapters.ledger.files import TABLE, Files
from batch_infer.adapters.ledger.records import Recorded, decode, reply_of
from batch_infer.contract import rows

USAGE, ERROR = arrow_type(rows.USAGE), arrow_type(rows.ERROR)


_json = msgspec.json.Encoder()


def _request_json(row: Recorded) -> str | None:
    if row.prompt is not None:
        name, value = b"prompt", _json.encode(row.prompt)
    elif row.messages is not None:
        name, value = b"messages", row.messages.encode()
    elif row.tokens is not None:
        name, value = b"input", _json.encode(row.tokens)
    else:
        return None
    files = b',"files":%d' % row.files if row.files else b""
    return (b'{"%s":%s%s}' % (name, value, files)).decode()


def _reply_json(row: Recorded) -> str | None:
    reply = reply_of(row)
    return None if reply is None else _json.encode(reply).decode()


class TableColumn(NamedTuple):
    """One column of the inference table."""

    name: str
    type: pa.DataType
    get: Callable[[Recorded], Any]


COLUMNS = (
    TableColumn("time", pa.timestamp("us", tz="UTC"), lambda row: row.at_us),
    TableColumn("endpoint", pa.string(), lambda row: row.endpoint),
    TableColumn("model", pa.string(), lambda row: row.model),
    TableColumn("status", pa.int32(), lambda row: row.status),
    TableColumn("duration_ms", pa.int64(), lambda row: row.latency_ms),
    TableColumn("attempts", pa.int32(), lambda row: row.attempts),
    TableColumn("usage", USAGE, lambda row: row.usage),
    TableColumn("cost_usd", pa.float64(), lambda row: row.cost_usd),
    TableColumn("request", pa.string(), _request_json),
    TableColumn("reply", pa.string(), _reply_json),
    TableColumn("request_key", pa.string(), lambda row: row.key),
    TableColumn("error", ERROR, lambda row: row.failure),
    TableColumn("fresh", pa.bool_(), lambda row: row.fresh),
)
SCHEMA = pa.schema([(column.name, column.type) for column in COLUMNS])
"""`request` and `reply` are JSON; `request` is null where requests are not kept, `reply` where there was a failure."""

BATCH_ROWS = 4096
"""Rows of one Arrow batch."""
PART_BYTES = 256 * 1024 * 1024
"""Bytes of Arrow in memory before a Parquet file is written."""
_COVERS = b"batch_infer.ledger"

_Ranges = dict[str, list[tuple[int, int]]]
"""Parts of each log that are held: from, to (exclusive)."""


def batches(files: Files) -> Iterator[Any]:
    """One row an outcome, failures included, by log, in the order of recording; damaged ones are left out."""
    logs, _ = current_logs(files)
    for log in logs.values():
        for batch, _ in _log_batches(files, log, 0):
            yield batch


def to_arrow(files: Files) -> Any:
    """All of `batches` as one table."""
    return pa.Table.from_batches(batches(files), SCHEMA)


def compact(files: Files) -> int:
    """Writes the outcomes that are not in `table/` yet to Parquet files there; the number of rows.

    Contract: each outcome is in exactly one file, also when this is killed at any point or runs twice. Files whose logs
    have been purged since are deleted and written again. Reads beside it see whole files only.
    """
    files.prepare()
    with files.maintaining(wait=True):
        logs, _ = current_logs(files)
        covered = _covered(files, logs)
        part = _Part(files)
        for log in logs.values():
            for begin, end in _gaps(covered.get(log.name, []), log.size):
                for batch, span in _log_batches(files, log._replace(size=end), begin):
                    part.add(log.name, batch, span)
        part.finish()
        return part.rows


def forget(files: Files, log: str) -> bool:
    """Deletes the Parquet files that hold rows of a log, before the log is replaced; whether there were any."""
    found = False
    for name in files.sizes(TABLE):
        ranges = _ranges_of(files, name)
        if ranges is None or log in ranges:
            files.delete(f"{TABLE}/{name}")
            found = True
    return found


class _Part:
    """The Parquet file that is being gathered."""

    def __init__(self, files: Files) -> None:
        self.rows = 0
        self._files = files
        self._batches: list[Any] = []
        self._bytes = 0
        self._ranges: _Ranges = {}

    def add(self, log: str, batch: Any, span: tuple[int, int]) -> None:
        begin, end = span
        ranges = self._ranges.setdefault(log, [])
        if ranges and ranges[-1][1] == begin:
            ranges[-1] = ranges[-1][0], end
        else:
            ranges.append((begin, end))
        self._batches.append(batch)
        self._bytes += batch.nbytes
        self.rows += batch.num_rows
        if self._bytes >= PART_BYTES:
            self.finish()

    def finish(self) -> None:
        rows = sum(batch.num_rows for batch in self._batches)
        if rows:
            covers = {_COVERS: msgspec.json.encode(self._ranges)}
            scratch = self._files.scratch(TABLE)
            pq.write_table(
                pa.Table.from_batches(self._batches, SCHEMA).replace_schema_metadata(covers),
                scratch,
                compression="zstd",
                coerce_timestamps="us",
            )
            self._files.publish(scratch, f"{TABLE}/part-{secrets.token_hex(8)}.parquet")
        self._batches, self._bytes, self._ranges = [], 0, {}


def _covered(files: Files, logs: dict[str, LogFile]) -> _Ranges:
    """What `table/` holds, after deleting files of replaced logs and files that hold what another one does."""
    covered: _Ranges = {}
    for name in sorted(files.sizes(TABLE)):
        ranges = _ranges_of(files, name)
        if ranges is None or any(log not in logs for log in ranges) or _overlap(covered, ranges):
            files.delete(f"{TABLE}/{name}")
            continue
        for log, spans in ranges.items():
            covered[log] = sorted([*covered.get(log, []), *spans])
    return covered


def _ranges_of(files: Files, name: str) -> _Ranges | None:
    if not name.endswith(".parquet"):
        return {}
    try:
        with files.arrow(f"{TABLE}/{name}") as source:
            metadata = pq.read_metadata(source).metadata or {}
        return msgspec.json.decode(metadata[_COVERS], type=_Ranges)
    except (OSError, pa.ArrowException, KeyError, msgspec.MsgspecError):
        return None


def _overlap(covered: _Ranges, ranges: _Ranges) -> bool:
    return any(
        begin < other_end and other_begin < end
        for log, spans in ranges.items()
        for begin, end in spans
        for other_begin, other_end in covered.get(log, [])
    )


def _gaps(spans: Iterable[tuple[int, int]], size: int) -> Iterator[tuple[int, int]]:
    """The parts of a log that no span holds; each begins where a record does."""
    start = 0
    for begin, end in spans:
        if begin > start:
            yield start, begin
        start = end
    if start < size:
        yield start, size


def _log_batches(files: Files, log: LogFile, start: int) -> Iterator[tuple[Any, tuple[int, int]]]:
    """Batches of rows, and the part of the log that each of them holds."""
    try:
        scan = scan_of(files, log, start)
    except FileNotFoundError:
        return
    records: list[Recorded] = []
    for _, _, payload in scan:
        try:
            record = decode(payload)
        except msgspec.MsgspecError:
            continue
        if isinstance(record, Recorded):
            records.append(record)
            if len(records) == BATCH_ROWS:
                yield _batch(records), (start, scan.end)
                records, start = [], scan.end
    if records:
        yield _batch(records), (start, scan.end)


def _batch(records: list[Recorded]) -> Any:
    columns = []
    for column in COLUMNS:
        values = list(map(column.get, records))
        if pa.types.is_struct(column.type):
            columns.append(array_of_records(values, column.type))
        else:
            columns.append(pa.array(values, column.type))
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)

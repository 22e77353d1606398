"""Owns how tickets.jsonl (the source, edited by people) becomes tickets.parquet and the counts in the card.

Run it from anywhere, after every change of the source: `python sample_data/build.py`.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.json as pj
import pyarrow.parquet as pq

HERE = Path(__file__).resolve().parent
SOURCE = HERE / "tickets.jsonl"
PARQUET = HERE / "tickets.parquet"
CARD = HERE / "README.md"

SCHEMA = pa.schema(
    {
        "ticket_id": pa.int64(),
        "created_at": pa.timestamp("us", tz="UTC"),
        "channel": pa.string(),
        "language": pa.string(),
        "customer": pa.string(),
        "subject": pa.string(),
        "body": pa.string(),
        "product": pa.string(),
        "category": pa.string(),
    }
)

LENGTH_CLASSES = ((50, "1 to 50"), (200, "51 to 200"), (600, "201 to 600"), (2_000, "601 to 2,000"))
COUNTS_BEGIN = "<!-- counts: written by build.py -->\n"
COUNTS_END = "<!-- end of counts -->\n"


def read_source() -> pa.Table:
    """The rows of the source in their final types. A field that is not in the schema is an error."""
    options = pj.ParseOptions(explicit_schema=SCHEMA, unexpected_field_behavior="error")
    return pj.read_json(SOURCE, parse_options=options).select(SCHEMA.names)


def write_parquet(table: pa.Table, path: Path) -> None:
    """One row group, Snappy, and no Arrow schema in the metadata: what every Spark version reads."""
    pq.write_table(
        table,
        path,
        compression="snappy",
        version="2.6",
        data_page_version="1.0",
        coerce_timestamps="us",
        store_schema=False,
    )


def length_class(body: str | None) -> str:
    """The name of the row of the card's length table that a body belongs to, in characters (code points)."""
    if body is None:
        return "NULL"
    if not body:
        return "empty string"
    if not body.strip():
        return "whitespace only"
    return next((name for limit, name in LENGTH_CLASSES if len(body) <= limit), "2,001 to 8,000")


def counts(table: pa.Table) -> str:
    """The card's tables, as Markdown, measured from the rows."""
    rows = table.to_pylist()
    bodies = [row["body"] for row in rows]
    order = ["NULL", "empty string", "whitespace only", *(name for _, name in LENGTH_CLASSES), "2,001 to 8,000"]
    by_length = Counter(map(length_class, bodies))
    repeated = Counter(body for body in bodies if body and body.strip())
    total = [
        ("tickets", len(rows)),
        ("longest body, in characters", max(len(body or "") for body in bodies)),
        ("bodies sent by two tickets", sum(1 for times in repeated.values() if times > 1)),
        *((f"NULL in `{name}`", table[name].null_count) for name in SCHEMA.names if table[name].null_count),
    ]
    return "\n".join(
        [
            _markdown("what", total),
            _markdown("length of the body, in characters", [(name, by_length[name]) for name in order]),
            *(
                _markdown(name, sorted(Counter(row[name] or "NULL" for row in rows).items(), key=_most_first))
                for name in ("category", "channel", "product", "language")
            ),
        ]
    )


def _most_first(item: tuple[str, int]) -> tuple[int, str]:
    return -item[1], item[0]


def _markdown(what: str, items: list[tuple[str, int]]) -> str:
    return "\n".join([f"| {what} | count |", "|---|---:|", *(f"| {name} | {count} |" for name, count in items)]) + "\n"


def main() -> None:
    """Write the Parquet file, then the counts into the card."""
    table = read_source()
    write_parquet(table, PARQUET)
    before, rest = CARD.read_text(encoding="utf-8").split(COUNTS_BEGIN)
    after = rest.split(COUNTS_END)[1]
    CARD.write_text(before + COUNTS_BEGIN + "\n" + counts(table) + "\n" + COUNTS_END + after, encoding="utf-8")
    print(f"{PARQUET.name}: {table.num_rows} tickets, {PARQUET.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()

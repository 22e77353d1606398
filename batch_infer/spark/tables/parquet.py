"""Owns Parquet tables that are whole or not there: staging beside the table, one rename, and what a crash leaves.

`error` and `overwrite` write to a hidden sibling of the table and rename it into place. On local disks and HDFS a
rename is one step, so that readers see the old table, none for the time between two renames, or the new one. On object
stores a rename is a copy of file after file: there `_SUCCESS` is written last, and a table without it is not whole; use
Delta there.

`append` stages too; then a journal in the table (the commit point) lists the files, which are renamed in one by one
under names that carry the transaction. Readers may see some of them before the others. A repeated append of a
transaction finishes what its journal lists, or finds its marker and adds nothing.

One writer at a time to one table: Parquet has no lock. Does not check arguments: `spark.tables.write` does.

On the driver.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import StructType

from batch_infer.contract.errors import ConfigError, SinkError
from batch_infer.spark.tables.filesystem import Files, read_parquet
from batch_infer.spark.tables.rules import Siblings, Written
from batch_infer.spark.tables.sink import Sink, Write

SUCCESS = "_SUCCESS"
"""File, written last, that says that a table is whole."""


def has_table(files: Files) -> bool:
    """Whether there is anything at the path, after a crash between two renames was healed.

    Raises:
        ConfigError: what is there is not a Parquet table.
    """
    heal(files)
    if not files.exists(files.root):
        return False
    if files.is_file(files.root):
        raise ConfigError(f"{files.root} is a file, and a table is a folder. Write to another path.")
    strangers = [
        entry.name
        for entry in files.list(files.root)
        if not entry.name.startswith((".", "_"))
        and not (("=" in entry.name) if entry.is_folder else entry.name.endswith(".parquet"))
    ]
    if strangers:
        raise ConfigError(
            f"{files.root} holds {strangers[0]!r}, which is no part of a Parquet table. Write to a folder of its own."
        )
    if files.exists(f"{files.root}/_delta_log"):
        raise ConfigError(f"{files.root} is a Delta table. Write it with format='delta', or to another path.")
    return True


def heal(files: Files) -> None:
    """Puts back the table that a run set aside, when the run died before it put the new one in its place."""
    if files.exists(files.root):
        return
    names = Siblings.of(files.root, "")
    aside = [f"{names.folder}/{name}" for name in _siblings(files, ".old")]
    if aside:
        files.rename(max(aside, key=files.modified_ms), files.root)


def _siblings(files: Files, ending: str) -> list[str]:
    names = Siblings.of(files.root, "")
    return [e.name for e in files.list(names.folder) if e.name.startswith(names.prefix) and e.name.endswith(ending)]


def rows_written_by(files: Files, names: Siblings) -> int | None:
    """Rows that this commit added to the table; `None` when it is not in it."""
    marker = f"{files.root}/{names.marker}"
    return int(json.loads(files.read_text(marker))["rows"]) if files.exists(marker) else None


def clean(files: Files, names: Siblings) -> None:
    """Deletes what a commit that is in the table has left beside it, and says that the table is whole."""
    files.delete(names.staging)
    files.delete(names.set_aside)
    if not files.is_atomic and not files.exists(f"{files.root}/{SUCCESS}"):
        files.write_text(f"{files.root}/{SUCCESS}", "")


def is_appending(files: Files, names: Siblings) -> bool:
    """Whether this commit was made, and died while it moved its files in."""
    return files.exists(f"{files.root}/{names.journal}")


def existing_schema(spark: SparkSession, files: Files) -> StructType | None:
    """The table's columns; `None` when it holds no data file to tell them."""
    if not _data_files(files, files.root):
        return None
    return read_parquet(spark, files.root).schema


def partition_columns(files: Files) -> list[str]:
    """The columns that the table's folders are named for, outermost first."""
    columns: list[str] = []
    folder = files.root
    while True:
        inner = next(
            (e.name for e in files.list(folder) if e.is_folder and "=" in e.name and e.name[0] not in "._"), None
        )
        if inner is None:
            return columns
        columns.append(inner.partition("=")[0])
        folder = f"{folder}/{inner}"


def write_files(
    df: DataFrame,
    files: Files,
    names: Siblings,
    *,
    mode: str,
    partition_by: Sequence[str],
    on_step: Callable[[str], None],
) -> int:
    """Writes a transaction that is not yet in the table. Returns the rows written.

    Args:
        df: All rows.
        files: Of the table's path.
        names: Of this commit.
        mode: error, overwrite or append.
        partition_by: Columns that become folders.
        on_step: Told `staged`, then `set_aside` (overwrite) and `committed`; for an append `staged`, `journalled`, and
            `moved` after each file.
    """
    if mode == "append" and files.exists(files.root):
        if not is_appending(files, names):
            rows = _stage(df, files, names, partition_by or partition_columns(files))
            on_step("staged")
            _write_journal(files, names, rows)
        on_step("journalled")
        return _move_in(files, names, on_step)
    rows = _stage(df, files, names, partition_by)
    files.write_text(f"{names.staging}/{names.marker}", json.dumps({"rows": rows}))
    on_step("staged")
    if not files.is_atomic:
        files.delete(f"{names.staging}/{SUCCESS}")
    _swap(files, names, on_step, replace=mode == "overwrite")
    on_step("committed")
    clean(files, names)
    if mode == "overwrite":
        for name in _siblings(files, ".old"):
            files.delete(f"{names.folder}/{name}")
    return rows


def _stage(df: DataFrame, files: Files, names: Siblings, partition_by: Sequence[str]) -> int:
    files.delete(names.staging)
    writer = df.write.mode("error")
    if partition_by:
        writer = writer.partitionBy(*partition_by)
    try:
        writer.parquet(names.staging)
    except BaseException:
        files.delete(names.staging)
        raise
    paths = [f"{names.staging}/{name}" for name in _data_files(files, names.staging)]
    # From the files' footers: what is counted is what can be read back.
    return int(read_parquet(df.sparkSession, *paths).count()) if paths else 0


def _data_files(files: Files, folder: str, inner: str = "") -> list[str]:
    """Data files under a folder, as paths relative to it."""
    found = []
    for entry in files.list(f"{folder}/{inner}" if inner else folder):
        if entry.name.startswith((".", "_")):
            continue
        name = f"{inner}/{entry.name}" if inner else entry.name
        found += _data_files(files, folder, name) if entry.is_folder else [name]
    return found


def _swap(files: Files, names: Siblings, on_step: Callable[[str], None], *, replace: bool) -> None:
    if not files.exists(files.root):
        files.rename(names.staging, files.root)
    elif not replace:
        raise SinkError(
            f"another run wrote {files.root} meanwhile; this run's rows are in {names.staging}. "
            "Run again with mode='overwrite' or 'append', or to another path."
        )
    else:
        files.delete(names.set_aside)
        files.rename(files.root, names.set_aside)
        on_step("set_aside")
        try:
            files.rename(names.staging, files.root)
        except SinkError:
            files.rename(names.set_aside, files.root)
            raise


def _write_journal(files: Files, names: Siblings, rows: int) -> None:
    journal = {"rows": rows, "files": _data_files(files, names.staging)}
    files.write_text(f"{files.root}/{names.journal}", json.dumps(journal))


def _move_in(files: Files, names: Siblings, on_step: Callable[[str], None]) -> int:
    journal = json.loads(files.read_text(f"{files.root}/{names.journal}"))
    for name in journal["files"]:
        inner, slash, file = name.rpartition("/")
        target = f"{files.root}/{inner}{slash}part-{names.commit_id}-{file.removeprefix('part-')}"
        if files.exists(f"{names.staging}/{name}"):
            files.make_folder(target.rpartition("/")[0])
            files.rename(f"{names.staging}/{name}", target)
            on_step("moved")
        elif not files.exists(target):
            raise SinkError(
                f"an append to {files.root} was cut short, and {name} is neither in it nor in {names.staging}. Were "
                f"files deleted by hand? To give this append up, delete {names.journal} and the files named "
                f"part-{names.commit_id}-*."
            )
    files.rename(f"{files.root}/{names.journal}", f"{files.root}/{names.marker}")
    clean(files, names)
    return int(journal["rows"])


class ParquetSink(Sink):
    """A folder of Parquet files, replaced by one rename."""

    name = "parquet"

    def has_table(self, files: Files, names: Siblings, mode: str) -> bool:  # noqa: ARG002 - see `Sink`
        """See `Sink.has_table`."""
        return has_table(files)

    def is_whole(self, files: Files) -> bool:
        """See `Sink.is_whole`."""
        return files.exists(f"{files.root}/{SUCCESS}")

    def written(self, spark: SparkSession, files: Files, names: Siblings, mode: str) -> Written | None:  # noqa: ARG002
        """See `Sink.written`."""
        rows = rows_written_by(files, names)
        if rows is None:
            return None
        clean(files, names)
        return Written(rows, files.root)

    def existing_schema(self, spark: SparkSession, files: Files) -> StructType | None:
        """See `Sink.existing_schema`."""
        return existing_schema(spark, files)

    def partition_columns(self, spark: SparkSession, files: Files) -> list[str]:  # noqa: ARG002
        """See `Sink.partition_columns`."""
        return partition_columns(files)

    def untyped_columns(self, spark: SparkSession, files: Files) -> list[str]:  # noqa: ARG002
        """See `Sink.untyped_columns`; partition columns are only text in the names of folders."""
        return partition_columns(files)

    def write(self, df: DataFrame, files: Files, names: Siblings, write: Write) -> Written:
        """See `Sink.write`."""
        rows = write_files(df, files, names, mode=write.mode, partition_by=write.partition_by, on_step=write.on_step)
        return Written(rows, files.root)


PARQUET = ParquetSink()

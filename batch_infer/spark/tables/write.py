"""Owns writing a finished DataFrame as a table, and saying beforehand whether that can work. Never calls a model.

What is written where is `spark.tables.parquet`'s and `spark.tables.delta`'s.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import StructType

from batch_infer.contract.errors import ConfigError
from batch_infer.spark.tables import delta, parquet
from batch_infer.spark.tables.filesystem import Files
from batch_infer.spark.tables.rules import (
    Siblings,
    Transaction,
    Written,
    check_choice,
    check_fit,
    check_schema,
)


def _nothing(step: str) -> None:
    del step


class TableExistsError(ConfigError):
    """The mode is `error`, and there is a table."""


def check_target(
    spark: SparkSession,
    path: str,
    *,
    format: str,  # noqa: A002 - the user's own word
    mode: str,
    schema: StructType,
    merge_key: Sequence[str] = (),
    partition_by: Sequence[str] = (),
    transaction: Transaction | None = None,
) -> Written | None:
    """Says, before anything is paid for, whether a table can be written.

    Runs on the driver; reads file names and schemas, no data. Makes the folders above the path. Where an earlier run
    died between two renames, it puts that run's old table back.

    Args:
        spark: The session that will write.
        path: The table's folder.
        format: parquet or delta.
        mode: error, overwrite, append or merge (Delta only).
        schema: Of the rows to come.
        merge_key: For merge: the columns that say which row is replaced. Where unsure that they are unique, call
            `check_merge_key` on the input, before it is paid for.
        partition_by: Columns that become folders. An append takes the table's own when this is empty.
        transaction: The write to come. One that is in the table already is not in its own way.

    Returns:
        What this transaction wrote, when it is in the table already: there is nothing left to write. `None` otherwise.

    Raises:
        ConfigError: an argument, the session, or what is at the path does not allow it.
        SinkError: the file system does not allow it.
    """
    check_choice(format=format, mode=mode, merge_key=merge_key)
    check_schema(schema.jsonValue(), format=format, merge_key=merge_key, partition_by=partition_by)
    if format == "delta":
        delta.check_session(spark)
    files = Files(spark, path)
    names = _names(files, transaction)
    exists = parquet.has_table(files) if format == "parquet" else delta.has_table(files, names, mode)
    if exists:
        if transaction is not None:
            written = _already(spark, files, names, format, mode)
            if written is not None:
                return written
        if mode == "error":
            unfinished = format == "parquet" and not files.exists(f"{files.root}/{parquet.SUCCESS}")
            raise TableExistsError(
                f"there is a table at {files.root}, and mode is 'error'"
                f"{' (it has no _SUCCESS: its writer may have died)' if unfinished else ''}. "
                "Write to another path, or with mode='overwrite' or 'append'."
            )
        if mode in ("append", "merge"):
            _check_existing(spark, files, format, schema, partition_by)
    _check_writable(files, names)
    return None


def write_table(
    df: DataFrame,
    path: str,
    *,
    format: str,  # noqa: A002
    mode: str,
    merge_key: Sequence[str] = (),
    transaction: Transaction | None = None,
    partition_by: Sequence[str] = (),
    on_step: Callable[[str], None] = _nothing,
) -> Written:
    """Writes a DataFrame as a table, all of it or nothing, and once for each transaction.

    Runs Spark jobs; calls no model unless `df` itself does, and a merge reads `df` twice. Checks all that
    `check_target` checks. One writer at a time for Parquet; Delta resolves conflicts itself. After a crash at any
    point, the same call again leaves the table as if nothing had happened.

    - Parquet, error and overwrite: a hidden sibling (`.<name>.batch_infer-<id>.tmp`), then one rename; an overwrite
      needs two, between which there is no table, and a crash there is healed by the next call. This holds on local
      disks and HDFS. On object stores a rename is not atomic: `_SUCCESS`, written last, says that a table is whole.
    - Parquet, append: files are moved in one by one, so that readers may see a part of it for a moment.
    - Delta: one commit. An overwrite replaces the schema too. A merge updates the columns of `df` in rows of equal key
      (NULL equals NULL), inserts the others, and keeps columns that `df` has not; where there is no table it makes one.

    Args:
        df: All rows.
        path: The table's folder.
        format: parquet or delta.
        mode: error, overwrite, append or merge (Delta only).
        merge_key: For merge: the columns that say which row is replaced.
        transaction: This write's identity; a repetition changes nothing, and clears what a killed run left beside the
            table. `None`: each call writes, and a killed one's leftovers stay.
        partition_by: Columns that become folders.
        on_step: Told of each step that a crash could follow; for tests.

    Returns:
        The rows written, the qualified path, and the Delta version; of the first time, for a repeated transaction.

    Raises:
        ConfigError: as `check_target`.
        SinkError: the file system refused, another run came between, or the merge key is not unique.
    """
    spark = df.sparkSession
    written = check_target(
        spark,
        path,
        format=format,
        mode=mode,
        schema=df.schema,
        merge_key=merge_key,
        partition_by=partition_by,
        transaction=transaction,
    )
    if written is not None:
        return written
    files = Files(spark, path)
    names = _names(files, transaction)
    if format == "parquet":
        rows = parquet.write(df, files, names, mode=mode, partition_by=partition_by, on_step=on_step)
        return Written(rows, files.root)
    if mode == "merge":
        delta.check_merge_key(df, merge_key)
    rows, version = delta.write(
        df,
        files,
        names,
        mode=mode,
        merge_key=merge_key,
        partition_by=partition_by,
        transaction=transaction,
        on_step=on_step,
    )
    return Written(rows, files.root, version)


def _names(files: Files, transaction: Transaction | None) -> Siblings:
    return Siblings.of(files.root, transaction.commit_id if transaction is not None else uuid.uuid4().hex[:16])


def _already(spark: SparkSession, files: Files, names: Siblings, format: str, mode: str) -> Written | None:  # noqa: A002
    if format == "parquet":
        rows = parquet.rows_written_by(files, names)
        if rows is None:
            return None
        parquet.clean(files, names)
        return Written(rows, files.root)
    commit = delta.commit_of(spark, files, delta.tag_of(names))
    if commit is None:
        return None
    delta.clean(files, names, mode)
    return Written(commit[0], files.root, commit[1])


def _check_existing(
    spark: SparkSession,
    files: Files,
    format: str,  # noqa: A002
    schema: StructType,
    partition_by: Sequence[str],
) -> None:
    if format == "parquet":
        existing = parquet.existing_schema(spark, files)
        if existing is None:
            return
        partitions = parquet.partition_columns(files)
        untyped = partitions
    else:
        existing = delta.existing_schema(spark, files)
        partitions = delta.partition_columns(spark, files)
        untyped = []
    check_fit(schema.jsonValue(), existing.jsonValue(), path=files.root, format=format, untyped=untyped)
    if partition_by and list(partition_by) != partitions:
        there = ", ".join(partitions) or "nothing"
        raise ConfigError(
            f"partition_by is {', '.join(partition_by)}, but the table at {files.root} is partitioned by {there}. "
            "Leave partition_by out, or write to another path."
        )


def _check_writable(files: Files, names: Siblings) -> None:
    probe = f"{names.folder}/{names.prefix}{uuid.uuid4().hex[:16]}.probe"
    files.make_folder(names.folder)
    files.write_text(probe, "")
    files.delete(probe)

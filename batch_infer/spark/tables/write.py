"""Owns writing a finished DataFrame as a table, and saying beforehand whether that can work. Never calls a model.

Knows no kind of table by name: what is written where is the sink's (`spark.tables.sinks`). On the driver.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import StructType

from batch_infer.contract.errors import ConfigError
from batch_infer.spark.tables.filesystem import Files
from batch_infer.spark.tables.rules import Siblings, Transaction, Written, check_fit
from batch_infer.spark.tables.sink import Sink, Write, quietly
from batch_infer.spark.tables.sinks import SINKS, check_choice, check_schema


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
        format: A sink's name.
        mode: error, overwrite, append, or merge where the sink can.
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
    sink = check_choice(format=format, mode=mode, merge_key=merge_key)
    check_schema(schema.jsonValue(), format=format, merge_key=merge_key, partition_by=partition_by)
    sink.check_session(spark)
    files = Files(spark, path)
    names = _names(files, transaction)
    if sink.has_table(files, names, mode):
        if transaction is not None:
            written = sink.written(spark, files, names, mode)
            if written is not None:
                return written
        if mode == "error":
            unfinished = not sink.is_whole(files)
            raise TableExistsError(
                f"there is a table at {files.root}, and mode is 'error'"
                f"{' (it has no _SUCCESS: its writer may have died)' if unfinished else ''}. "
                "Write to another path, or with mode='overwrite' or 'append'."
            )
        if mode in ("append", "merge"):
            _check_existing(spark, files, sink, schema, partition_by)
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
    on_step: Callable[[str], None] = quietly,
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
        format: A sink's name.
        mode: error, overwrite, append, or merge where the sink can.
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
    write = Write(mode=mode, merge_key=merge_key, partition_by=partition_by, transaction=transaction, on_step=on_step)
    return SINKS[format].write(df, files, names, write)


def _names(files: Files, transaction: Transaction | None) -> Siblings:
    return Siblings.of(files.root, transaction.commit_id if transaction is not None else uuid.uuid4().hex[:16])


def _check_existing(
    spark: SparkSession, files: Files, sink: Sink, schema: StructType, partition_by: Sequence[str]
) -> None:
    existing = sink.existing_schema(spark, files)
    if existing is None:
        return
    check_fit(
        schema.jsonValue(),
        existing.jsonValue(),
        path=files.root,
        may_lack_columns=sink.may_lack_columns,
        how_to_add=sink.how_to_add,
        untyped=sink.untyped_columns(spark, files),
    )
    partitions = sink.partition_columns(spark, files)
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

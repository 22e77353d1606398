"""Owns Delta tables: whether the session speaks Delta, and commits that a repetition does not make twice.

Uses Spark's own writer and SQL, so that the jar and the session's two settings are all it needs; no Python package.
Does not check arguments: `spark.tables.write` does.

On the driver.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import Any

from py4j.protocol import Py4JJavaError
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - Spark's own convention
from pyspark.sql.types import StructType

from batch_infer.contract.errors import ConfigError, SinkError
from batch_infer.spark.tables.delta_rules import (
    DELTA_CATALOG,
    DELTA_EXTENSION,
    check_names,
    how_to_get_delta,
    merge_statement,
)
from batch_infer.spark.tables.filesystem import Files
from batch_infer.spark.tables.rules import Schema, Siblings, Transaction, Written, quoted
from batch_infer.spark.tables.sink import Sink, Write

_EXAMPLES = 3
_RECENT_COMMITS = 100
"""Commits looked through for ours, before all of them are."""
_ON_DATABRICKS = "spark.databricks.clusterUsageTags.sparkVersion"


def check_session(spark: SparkSession) -> None:
    """Refuses a session without Delta's jar or settings.

    Raises:
        ConfigError: with the lines that add them.
    """
    if spark.conf.get(_ON_DATABRICKS, None):
        return
    missing = []
    jvm = spark._jvm  # noqa: SLF001 - the class path is not in the public API
    try:
        jvm.org.apache.spark.util.Utils.getContextOrSparkClassLoader().loadClass(DELTA_EXTENSION)
    except Py4JJavaError:
        missing.append("this Spark session has no Delta jar")
    if DELTA_EXTENSION not in (spark.conf.get("spark.sql.extensions", None) or ""):
        missing.append(f"spark.sql.extensions does not name {DELTA_EXTENSION.rpartition('.')[2]}")
    if spark.conf.get("spark.sql.catalog.spark_catalog", None) != DELTA_CATALOG:
        missing.append("spark.sql.catalog.spark_catalog is not DeltaCatalog")
    if missing:
        scala = jvm.scala.util.Properties.versionNumberString()
        raise ConfigError(how_to_get_delta(", and ".join(missing), spark.version, scala))


def has_table(files: Files, names: Siblings, mode: str) -> bool:
    """Whether there is a Delta table at the path. Files of a first write that died are no table.

    Raises:
        ConfigError: something else is there.
    """
    if _has_commits(files):
        return True
    if files.is_file(files.root):
        raise ConfigError(f"{files.root} is a file, and a table is a folder. Write to another path.")
    present = [entry.name for entry in files.list(files.root)]
    if present and not _leftovers(files, names, mode):
        if _leftovers(files, names, "overwrite"):
            raise ConfigError(
                f"{files.root} holds files of another run's first write, which has not committed. If that run is dead, "
                "write with mode='overwrite'."
            )
        raise ConfigError(
            f"{files.root} holds {present[0]!r}, but no Delta table. Write to a path of its own; or, if these are "
            f"Parquet files that are to become one: CONVERT TO DELTA parquet.`{files.root}`"
        )
    return False


def _has_commits(files: Files) -> bool:
    return any(entry.name.endswith((".json", ".parquet")) for entry in files.list(f"{files.root}/_delta_log"))


def _leftovers(files: Files, names: Siblings, mode: str) -> list[str]:
    """The notes that say that the files at the path are of a first write: this one's, or anybody's to overwrite."""
    notes = [entry.name for entry in files.list(names.folder) if entry.name.startswith(names.prefix)]
    wanted = [f"{names.folder}/{note}" for note in notes if note.endswith(".new")]
    return wanted if mode == "overwrite" else [note for note in wanted if note == names.creating]


def clean(files: Files, names: Siblings, mode: str) -> None:
    """Deletes the notes of a commit that is in the table."""
    for note in _leftovers(files, names, mode):
        files.delete(note)


def existing_schema(spark: SparkSession, files: Files) -> StructType:
    """The table's columns."""
    return spark.read.format("delta").load(files.root).schema


def partition_columns(spark: SparkSession, files: Files) -> list[str]:
    """The table's partition columns."""
    return list(spark.sql(f"DESCRIBE DETAIL {_name(files)}").first()["partitionColumns"])


def commit_of(spark: SparkSession, files: Files, tag: str) -> tuple[int, int] | None:
    """The rows and the version of the commit with this tag; `None` when the table's history has none."""
    for limit in (f"LIMIT {_RECENT_COMMITS}", ""):
        history = spark.sql(f"DESCRIBE HISTORY {_name(files)} {limit}").where(F.col("userMetadata") == tag)
        commit = history.select("version", "operationMetrics").first()
        if commit is not None:
            metrics = commit["operationMetrics"] or {}
            rows = metrics.get("numSourceRows", metrics.get("numOutputRows", 0))
            return int(rows), int(commit["version"])
    return None


def tag_of(names: Siblings) -> str:
    """What a commit of ours carries as its `userMetadata`."""
    return f"batch_infer:{names.commit_id}"


def check_merge_key(df: DataFrame, merge_key: Sequence[str]) -> None:
    """Refuses rows that would merge into the same row. Reads all keys once.

    Raises:
        SinkError: with some of the keys that occur more than once.
    """
    twice = (
        df.groupBy(*(F.col(quoted(name)) for name in merge_key)).count().where("count > 1").limit(_EXAMPLES).collect()
    )
    if twice:
        examples = "; ".join(", ".join(f"{name}={row[name]!r}"[:100] for name in merge_key) for row in twice)
        raise SinkError(
            f"merge_key {', '.join(merge_key)} is not unique in the output, so that it is undecided which row wins: "
            f"{examples}. Drop duplicates first, or add columns to merge_key."
        )


def write_commit(
    df: DataFrame,
    files: Files,
    names: Siblings,
    *,
    mode: str,
    merge_key: Sequence[str],
    partition_by: Sequence[str],
    transaction: Transaction | None,
    on_step: Callable[[str], None],
) -> tuple[int, int]:
    """Writes and commits. Returns the rows and the version of the commit, the earlier one's when it was there before.

    Args:
        df: All rows.
        files: Of the table's path.
        names: Of this commit.
        mode: error, overwrite, append or merge.
        merge_key: For merge.
        partition_by: Columns that become folders.
        transaction: Makes a repetition do nothing; `None`: each call is a commit.
        on_step: Told `writing` before Spark starts to write.

    Raises:
        SinkError: the table has a later transaction of the same app_id, so that Delta left this one out.
    """
    spark = df.sparkSession
    is_new = not has_table(files, names, mode)
    if is_new:
        files.delete(files.root)
        files.write_text(names.creating, "")
    on_step("writing")
    try:
        if mode == "merge" and not is_new:
            _merge(df, files, names, merge_key, transaction)
        else:
            _save(df, files, names, mode=mode, partition_by=partition_by, transaction=transaction)
    except BaseException:
        if is_new and not _has_commits(files):
            files.delete(files.root)
            files.delete(names.creating)
        raise
    clean(files, names, mode)
    commit = commit_of(spark, files, tag_of(names))
    if commit is None:
        raise SinkError(
            f"nothing was written to {files.root}: it has a transaction of {transaction} or a later version already. "
            "Count the version up with every write."
        )
    return commit


def _save(
    df: DataFrame,
    files: Files,
    names: Siblings,
    *,
    mode: str,
    partition_by: Sequence[str],
    transaction: Transaction | None,
) -> None:
    writer = df.write.format("delta").mode("append" if mode == "merge" else mode)
    options = {"userMetadata": tag_of(names), "partitionOverwriteMode": "static"}
    if mode == "overwrite":
        options["overwriteSchema"] = "true"
    if transaction is not None:
        options |= {"txnAppId": transaction.app_id, "txnVersion": str(transaction.version)}
    if partition_by:
        writer = writer.partitionBy(*partition_by)
    writer.options(**options).save(files.root)


def _merge(
    df: DataFrame, files: Files, names: Siblings, merge_key: Sequence[str], transaction: Transaction | None
) -> None:
    """MERGE has no writer options: Delta reads the transaction from the session's settings.

    They are set in a clone of the session, where no other write of the user's can pick them up and be left out.
    """
    view = f"batch_infer_{uuid.uuid4().hex}"
    settings = {"spark.databricks.delta.commitInfo.userMetadata": tag_of(names)}
    if transaction is not None:
        settings["spark.databricks.delta.write.txnAppId"] = transaction.app_id
        settings["spark.databricks.delta.write.txnVersion"] = str(transaction.version)
    df.createOrReplaceTempView(view)
    try:
        clone: Any = df.sparkSession._jsparkSession.cloneSession()  # noqa: SLF001 - the public newSession() forgets settings
        for key, value in settings.items():
            clone.conf().set(key, value)
        clone.sql(merge_statement(files.root, view, merge_key, df.columns))
    finally:
        df.sparkSession.catalog.dropTempView(view)


def _name(files: Files) -> str:
    return f"delta.`{files.root.replace('`', '``')}`"


class DeltaSink(Sink):
    """A Delta table, changed by one commit."""

    name = "delta"
    modes = (*Sink.modes, "merge")
    settles_conflicts = True
    may_lack_columns = True

    def check_session(self, spark: SparkSession) -> None:
        """See `Sink.check_session`."""
        check_session(spark)

    def check_names(self, schema: Schema) -> None:
        """See `Sink.check_names`."""
        check_names(schema)

    def has_table(self, files: Files, names: Siblings, mode: str) -> bool:
        """See `Sink.has_table`."""
        return has_table(files, names, mode)

    def written(self, spark: SparkSession, files: Files, names: Siblings, mode: str) -> Written | None:
        """See `Sink.written`."""
        commit = commit_of(spark, files, tag_of(names))
        if commit is None:
            return None
        clean(files, names, mode)
        return Written(commit[0], files.root, commit[1])

    def existing_schema(self, spark: SparkSession, files: Files) -> StructType:
        """See `Sink.existing_schema`."""
        return existing_schema(spark, files)

    def partition_columns(self, spark: SparkSession, files: Files) -> list[str]:
        """See `Sink.partition_columns`."""
        return partition_columns(spark, files)

    def how_to_add(self, path: str, columns: str) -> str:
        """See `Sink.how_to_add`."""
        return f"ALTER TABLE delta.{quoted(path)} ADD COLUMNS ({columns})"

    def check_merge_key(self, df: DataFrame, merge_key: Sequence[str]) -> None:
        """See `Sink.check_merge_key`."""
        check_merge_key(df, merge_key)

    def write(self, df: DataFrame, files: Files, names: Siblings, write: Write) -> Written:
        """See `Sink.write`."""
        if write.mode == "merge":
            check_merge_key(df, write.merge_key)
        rows, version = write_commit(
            df,
            files,
            names,
            mode=write.mode,
            merge_key=write.merge_key,
            partition_by=write.partition_by,
            transaction=write.transaction,
            on_step=write.on_step,
        )
        return Written(rows, files.root, version)


DELTA = DeltaSink()

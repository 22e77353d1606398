"""Owns how a run starts: the table is claimed, a broken-off run is found, and the target is checked. Asks nothing.

On the driver.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import StructType

from batch_infer.contract.errors import ConfigError
from batch_infer.spark.job.claim import Claim
from batch_infer.spark.job.phases import is_same_input
from batch_infer.spark.job.work_folder import ADDING, WorkFolder
from batch_infer.spark.tables import TableExistsError, Written, check_merge_key, check_target
from batch_infer.spark.tables.filesystem import Files, read_parquet
from batch_infer.spark.tables.sinks import SINKS


@contextlib.contextmanager
def started(
    df: DataFrame, output: str, work: WorkFolder, schema: StructType, table: dict[str, Any]
) -> Iterator[tuple[Claim, WorkFolder, bool, Written | None]]:
    """Claims the table for the block, and says whether it can be written. Puts the run's mode into `table`.

    Gives the claim; the folder of this run, or of the one that it continues; whether it continues one; and what that
    one has written, if it had come so far.
    """
    spark, mode = df.sparkSession, table["mode"]
    sink = SINKS.get(table["format"])
    may_share = sink is not None and sink.settles_conflicts and mode in ADDING
    claim = Claim.take(Files(spark, output), work.job, alone=not may_share)
    try:
        continued = work.unfinished() if mode == "resume" else None
        if continued is not None:
            work = continued
            _check_same_columns(read_parquet(spark, work.input), df)
        else:
            work.begin("overwrite" if mode == "resume" else mode)
            if mode == "resume":
                _check_nothing_is_replaced(spark, output, schema, table)
        table["mode"] = work.mode
        transaction = work.transaction if continued is not None else None
        written = check_target(spark, output, schema=schema, transaction=transaction, **table)
        if work.mode == "merge" and continued is None:
            check_merge_key(df, table["merge_key"])
        yield claim, work, continued is not None, written
    finally:
        claim.release()


def same_as_broken_off(spark: SparkSession, work: WorkFolder) -> tuple[WorkFolder, bool]:
    """The folder to go on with: that of an append or merge of the very same rows which was broken off, if there is one.

    That run may have committed them already, and its transaction says so.
    """
    earlier = work.unfinished(work.mode) if work.mode in ADDING else None
    if earlier is None or not is_same_input(spark, work.input, earlier.input):
        return work, False
    work.finish()
    return earlier, True


def _check_nothing_is_replaced(spark: SparkSession, output: str, schema: StructType, table: dict[str, Any]) -> None:
    try:
        check_target(spark, output, schema=schema, **{**table, "mode": "error"})
    except TableExistsError:
        raise ConfigError(
            f"run: no run of this job was broken off, so there is nothing to resume, and there is a table at {output}. "
            "To write it again, use mode='overwrite' (what is in the ledger costs nothing); to add to it, 'append'."
        ) from None


def _check_same_columns(kept: DataFrame, given: DataFrame) -> None:
    missing = [name for name in given.columns if name not in kept.columns]
    if missing:
        raise ConfigError(
            f"run: the broken-off run read its input without the column {missing[0]!r}, and mode 'resume' continues on "
            "that input. Give the same columns, or start anew with another mode (what was answered is in the ledger)."
        )

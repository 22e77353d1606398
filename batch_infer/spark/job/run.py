"""Owns the job engine: a DataFrame in, its requests asked once, a table out. Does not draw progress. On the driver."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pyspark.sql import Column, DataFrame, Observation, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - Spark's own convention

from batch_infer.adapters.coordinator.call import Call
from batch_infer.adapters.ledger import Ledger
from batch_infer.contract.errors import ConfigError, JobRejected
from batch_infer.contract.options import CallOptions, JobOptions
from batch_infer.engine.early_stop import EarlyStop
from batch_infer.spark.job.columns import added_names, check_input, column_named, output_columns, request_column
from batch_infer.spark.job.interrupt import JobInterrupted, cancelled_on_interrupt
from batch_infer.spark.job.monitor import Monitor, OnProgress
from batch_infer.spark.job.phases import ANSWER, FAILED_DDL, answered, fill, prepare
from batch_infer.spark.job.start import same_as_broken_off, started
from batch_infer.spark.job.summary import RunSummary, measures, requests_in_doubt, summarised, with_limits
from batch_infer.spark.job.work_folder import WorkFolder
from batch_infer.spark.planning import (
    as_sent,
    check_ledger,
    check_request_type,
    check_secret,
    plan_column,
    typed_by_format,
)
from batch_infer.spark.session import LEDGER_SETTING, find_call, settings_of
from batch_infer.spark.tables import check_target, write_table
from batch_infer.spark.tables.filesystem import Files, read_parquet
from batch_infer.spark.udf import ColumnPlan

__all__ = ["JobInterrupted", "RunSummary", "run"]


@dataclass(frozen=True, slots=True)
class _Planned:
    """A job whose arguments are checked; nothing has been asked."""

    plan: ColumnPlan
    ledger: str
    request: Column
    images: Column | None
    number: Column | None
    columns: list[Column]
    """The output's."""
    table: dict[str, Any]
    """How the output is written: format, mode, merge_key."""


def run(df: DataFrame, call: CallOptions, job: JobOptions, *, on_progress: OnProgress | None = None) -> RunSummary:
    """Asks the endpoint once for each distinct request of `df`, and writes the rows; see `batch_infer.run`.

    Args:
        df: The input.
        call: The call's arguments; `request`, `files` and `sample` are names (or, of the request, a Column).
        job: The job's own.
        on_progress: Told the totals while the job runs.
    """
    began = time.monotonic()
    early_stop = EarlyStop(job.max_error_ratio, job.stop_after_failures)
    planned = _plan(df, call, job)
    spark, plan = df.sparkSession, planned.plan
    empty = spark.createDataFrame([], df.schema).withColumn(ANSWER, F.lit(None).cast(plan.ddl)).select(*planned.columns)
    work = WorkFolder.of(spark, job.output, plan, planned.request)
    start = started(df, job.output, work, empty.schema, planned.table)
    with start as found, cancelled_on_interrupt(spark, plan, planned.ledger, job.mode):
        claim, work, is_continued, written = found
        check_ledger(plan)
        # With this name, a run that continues another one knows what that one asked afresh, or again.
        plan = replace(plan, call=replace(plan.call, run=work.run))
        if not is_continued:
            prepare(df, plan, planned.request, planned.images, planned.number).write.parquet(work.input)
            work, is_repeated = same_as_broken_off(spark, work)
            if is_repeated:
                written = check_target(
                    spark, job.output, schema=empty.schema, transaction=work.transaction, **planned.table
                )
        prepared = read_parquet(spark, work.input)
        with Monitor(_call_of(plan), plan.call.endpoint.name, early_stop, on_progress, began) as monitor:
            fill(prepared, plan).write.mode("overwrite").parquet(work.failures)
            with contextlib.closing(Ledger.open(planned.ledger)) as opened:
                opened.compact_index()
        failures = read_parquet(spark, work.failures, schema=FAILED_DDL)
        rows = answered(prepared, failures, plan, unsent=monitor.call.halted)
        _check_append_is_whole(monitor, work, job.output)
        if written is None:
            observation = Observation()
            rows = rows.observe(observation, *measures())
            claim.check()
            write_table(rows.select(*planned.columns), job.output, transaction=work.transaction, **planned.table)
            seen: Mapping[str, Any] = observation.get
        else:
            seen = rows.agg(*measures()).collect()[0].asDict()  # the run that was broken off had committed already
        work.finish(is_whole=not seen["error not_sent"])
    is_priced = plan.call.endpoint.usd_per_million_prompt_tokens is not None
    in_doubt = requests_in_doubt(planned.ledger, plan.call.run)
    seconds = time.monotonic() - began
    said = summarised(job.output, planned.ledger, seen, seconds, is_priced=is_priced, in_doubt=in_doubt)
    return with_limits(said, monitor, work.mode)


def _plan(df: DataFrame, call: CallOptions, job: JobOptions) -> _Planned:
    """Every check that needs no reply and touches no table."""
    spark = df.sparkSession
    request = request_column(df, job.prompt, call.request)
    check_input(df, call.files, call.sample, added_names(call.details, job.result_column))
    where = job.ledger or settings_of(spark).get(LEDGER_SETTING) or _ledger_beside(spark, job.output)
    if where.lower() == "off":
        raise ConfigError("run: a job keeps its replies in a ledger; 'off' is for columns. Give a path, or nothing.")
    plan = plan_column(
        spark,
        typed_by_format(replace(call, details=True)),
        function="run",
        stop_on_row_error=call.fail_on_error,
        retry_failed=job.retry_failed,
        ledger=where,
    )
    task = plan.call.endpoint.task
    check_secret(spark, plan.call.endpoint)
    check_request_type(df.select(request.alias("request")).schema["request"].dataType, task, "run")
    return _Planned(
        plan=plan,
        ledger=plan.call.ledger or where,
        request=as_sent(request, task),
        images=column_named(df, call.files) if call.has_files else None,
        number=column_named(df, call.sample).cast("bigint") if call.has_sample else None,
        columns=output_columns(df, call.details, job.result_column),
        table={"format": job.format, "mode": job.mode, "merge_key": job.merge_key},
    )


def _check_append_is_whole(monitor: Monitor, work: WorkFolder, output: str) -> None:
    if monitor.call.halted is not None and work.mode == "append":
        raise JobRejected(
            f"stopped early, {monitor.stopped_early}. Nothing was added to {output}: rows that were not sent could not "
            "be taken out again. What was answered is in the ledger; run the same command again, and it goes on.",
            kind="stopped_early",
        )


def _call_of(plan: ColumnPlan) -> Call:
    call = find_call(plan.call.call_id)
    assert call is not None, "a call is kept while the driver plans with it"
    return call


def _ledger_beside(spark: SparkSession, output: str) -> str:
    """`<output>.ledger`, as a path where it is on this machine's disks, else as a URI."""
    root = Files(spark, output).root.rstrip("/")
    return (re.sub("^file:/+", "/", root) if root.startswith("file:") else root) + ".ledger"

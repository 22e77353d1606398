"""Owns the job engine: a DataFrame in, its requests asked once, a table out. Does not draw progress."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from py4j.protocol import Py4JJavaError
from pyspark.sql import Column, DataFrame, Observation, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - Spark's own convention
from pyspark.sql.types import DataType

from batch_infer.adapters.coordinator import Call
from batch_infer.adapters.ledger import Ledger
from batch_infer.contract.errors import ROW_ERROR_KINDS, ConfigError, JobRejected
from batch_infer.contract.progress import Counters
from batch_infer.contract.rows import DETAIL_FIELDS, USAGE_FIELDS
from batch_infer.engine.early_stop import DEFAULT_STOP_AFTER_FAILURES, EarlyStop
from batch_infer.spark.job.monitor import OnProgress, Watch
from batch_infer.spark.job.phases import ANSWER, FAILED_DDL, INTERNAL, OUTCOME, answered, fill, prepare
from batch_infer.spark.job.start import begun, same_as_broken_off
from batch_infer.spark.job.template import Field, Text, check_columns, parse_template
from batch_infer.spark.job.work_folder import ADDING, WorkFolder
from batch_infer.spark.planning import as_sent, check_ledger, check_request_type, check_secret, plan_column
from batch_infer.spark.session import LEDGER_SETTING, find_call, settings_of
from batch_infer.spark.tables import check_target, write_table
from batch_infer.spark.tables.filesystem import Files, read_parquet
from batch_infer.spark.tables.rules import quoted
from batch_infer.spark.udf import ColumnPlan

AUDIT_BELOW_BYTES = 256 * 1024 * 1024
"""A ledger up to this size is audited after a job: 6 CPU seconds a million records."""


class JobInterrupted(KeyboardInterrupt):
    """Ctrl-C while a job ran. Its text says what is kept, and how to go on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """What a job did. Tokens and dollars are what the endpoint billed for the rows written, repeats included."""

    output: str
    ledger: str
    rows: int
    """Rows written; as many as the input has."""
    succeeded: int
    failed: int
    null: int
    """Rows whose request was NULL: no call."""
    from_ledger: int
    """Rows that cost nothing now: known from before, or equal to another row of this job."""
    in_doubt: int | None
    """Of the distinct requests that this run (or the broken-off one that it continues) sent: those that have been sent,
    in this run or an earlier one, without an outcome, because a worker died or was stopped. They may have been billed
    without a reply. Requests of other runs that this one did not send do not count. `None`: the ledger is too large to
    audit here."""
    asked: int
    """Distinct requests that were sent now."""
    attempts: int
    """Requests' attempts summed over rows; a packed request counts once for each of its rows."""
    prompt_tokens: int | None
    completion_tokens: int | None
    total_tokens: int | None
    cost_usd: float | None
    """`None` when the price is unknown."""
    seconds: float
    errors: Mapping[str, int] = field(default_factory=dict)
    """How many rows failed, by kind of error. `not_sent`: those of a run that was stopped early."""
    throttled: int = 0
    """Replies that asked to slow down (429, 503, 529)."""
    waiting_s: float = 0.0
    """Seconds that requests waited for a limit or a pause before they were sent, summed over requests."""
    bound_by: str | None = None
    """The limit that held the job back, for a good part of its time, in words; `None`: none did."""
    unleased_tasks: int = 0
    """Tasks that could not hear from the driver for a while, and kept to a share of their own of the limits."""
    stopped_early: str | None = None
    """Why not all was sent ("because …": `max_error_ratio`, `stop_after_failures`); `None`: all was."""
    mode: str = ""
    """How the table was written: error, overwrite, append or merge."""


def run(
    df: DataFrame,
    *,
    endpoint: str | None,
    prompt: str | None = None,
    request: Column | str | None = None,
    output: str,
    format: str = "parquet",  # noqa: A002 - Spark's own name for it
    mode: str = "error",
    merge_key: Sequence[str] = (),
    ledger: str | None = None,
    return_type: str | None = None,
    model_parameters: Mapping[str, Any] | str | None = None,
    response_format: str | Mapping[str, Any] | DataType | None = None,
    files: str | None = None,
    sample: str | None = None,
    fresh: bool = False,
    retry_failed: bool = False,
    details: bool = True,
    result_column: str = "result",
    fail_on_error: bool = False,
    max_error_ratio: float = 1.0,
    stop_after_failures: int | None = DEFAULT_STOP_AFTER_FAILURES,
    on_progress: OnProgress | None = None,
) -> RunSummary:
    """Asks the endpoint once for each distinct request of `df`, and writes the rows with their replies.

    The output has the input's columns, then the row contract's (`result`, `error`, `usage`, `cost_usd`, …). Rows in =
    rows out. Every check that needs no reply is made before the first call. Each reply is in the ledger before anything
    is made of it, so that a job that died is finished by running it again, and pays only for what is missing.

    Args:
        df: The input.
        endpoint: As for `ai_query`.
        prompt: A template over columns: `"Summarise in one sentence: {body}"`. A NULL column makes a NULL request.
        request: Instead of `prompt`: a column of prompts, messages, or a custom model's inputs.
        output: Where the table goes: a path.
        format: `parquet` or `delta`.
        mode: `error`, `overwrite`, `append`, (Delta) `merge`, or `resume`: continue the run that was broken off, on the
            input as it was read then and in that run's mode; where there is none and no table either, begin. An append
            or merge of the very rows that a broken-off run was to add adds them once.
        merge_key: Columns that identify a row, for `merge`.
        ledger: Where replies are kept: a path or URI that all workers share. Default: the setting
            `spark.batch_infer.ledger`, or `<output>.ledger`, a sibling that overwriting never touches.
        return_type: As for `ai_query`.
        model_parameters: As for `ai_query`.
        response_format: As for `ai_query`.
        files: Name of a column of images.
        sample: Name of a BIGINT column that tells equal prompts apart.
        fresh: Ask again although the ledger knows the reply.
        retry_failed: Ask again for every request that failed in an earlier run. Without it only those are asked again
            that may succeed (`error.retryable`); the others keep the error that was recorded, and cost nothing.
        details: `False` writes the result and its error message alone.
        result_column: Name of the result's column, such as `embedding`.
        fail_on_error: End the job at the first row that fails for good, instead of writing its error.
        max_error_ratio: Send nothing further once more than this part of the requests asked now has failed (judged
            from the 100th on). The output is written with what there is; rows that were not sent have the error kind
            `not_sent`, and `mode="resume"` sends them. An append is not made; the same command again goes on with it.
            1 never stops.
        stop_after_failures: The same when so many requests have failed in one way before any was answered. `None`
            never stops.
        on_progress: Told the totals while the job runs.

    Raises:
        ConfigError: an argument is wrong, or a column is missing; before anything is paid.
        SinkError: the output or the ledger cannot be written, or another run is writing to the output now.
        JobRejected: no row can succeed, or (with `fail_on_error`) a row failed; says why. What was answered is kept.
        JobInterrupted: Ctrl-C; the job's Spark jobs are cancelled, and what was answered is kept.
    """
    spark = df.sparkSession
    early_stop = EarlyStop(max_error_ratio, stop_after_failures)
    asked = _request_column(df, prompt, request)
    _check_columns(df, files, sample, [result_column, *(DETAIL_FIELDS if details else ("error_message",))])
    settings = settings_of(spark)
    where = ledger or settings.get(LEDGER_SETTING) or _ledger_beside(spark, output)
    if where == "off":
        raise ConfigError("run: a job keeps its replies in a ledger; 'off' is for columns. Give a path, or nothing.")
    plan = plan_column(
        spark,
        endpoint,
        return_type=return_type,
        model_parameters=model_parameters,
        response_format=response_format,
        details=True,
        stop_on_row_error=fail_on_error,
        has_files=files is not None,
        has_sample=sample is not None,
        fresh=fresh,
        retry_failed=retry_failed,
        ledger=where,
    )
    where = plan.call.ledger or where
    check_secret(spark, plan.call.endpoint)
    check_request_type(df.select(asked.alias("request")).schema["request"].dataType, plan.call.endpoint.task)
    asked = as_sent(asked, plan.call.endpoint.task)
    columns = [*(F.col(quoted(name)) for name in df.columns), *_reply_columns(details, result_column)]
    empty = spark.createDataFrame([], df.schema).withColumn(ANSWER, F.lit(None).cast(plan.ddl)).select(*columns)
    table: dict[str, Any] = {"format": format, "mode": mode, "merge_key": merge_key}
    started = time.monotonic()
    beginning = begun(df, output, WorkFolder.of(spark, output, plan, asked), empty.schema, table)
    with beginning as found, _cancelled_on_interrupt(spark, plan, where, mode):
        claim, work, is_continued, written = found
        check_ledger(plan)
        # With this name, a run that continues another one knows what that one asked afresh, or again.
        plan = replace(plan, call=replace(plan.call, run=work.run))
        if not is_continued:
            number = column_named(df, sample).cast("bigint") if sample is not None else None
            images = column_named(df, files) if files is not None else None
            prepare(df, plan, asked, images, number).write.parquet(work.input)
            work, is_repeated = same_as_broken_off(spark, work)
            if is_repeated:
                written = check_target(spark, output, schema=empty.schema, transaction=work.transaction, **table)
        prepared = read_parquet(spark, work.input)
        with Watch(_call_of(plan), plan.call.endpoint.name, early_stop, on_progress, started) as watch:
            fill(prepared, plan).write.mode("overwrite").parquet(work.failures)
            with contextlib.closing(Ledger.open(where)) as opened:
                opened.compact_index()
        failures = read_parquet(spark, work.failures, schema=FAILED_DDL)
        rows = answered(prepared, failures, plan, unsent=watch.call.halted)
        _check_append_is_whole(watch, work, output)
        if written is None:
            observation = Observation()
            rows = rows.observe(observation, *_measures())
            claim.check()
            write_table(rows.select(*columns), output, transaction=work.transaction, **table)
            seen: Mapping[str, Any] = observation.get
        else:
            seen = rows.agg(*_measures()).collect()[0].asDict()  # the run that was broken off had committed already
        work.finish(is_whole=not seen["error not_sent"])
    is_priced = plan.call.endpoint.usd_per_million_prompt_tokens is not None
    in_doubt = _in_doubt(where, plan.call.run)
    return _with_limits(
        _summary(output, where, seen, time.monotonic() - started, is_priced=is_priced, in_doubt=in_doubt),
        watch,
        work.mode,
    )


def _check_append_is_whole(watch: Watch, work: WorkFolder, output: str) -> None:
    if watch.call.halted is not None and work.mode == "append":
        raise JobRejected(
            f"stopped early, {watch.stopped_early}. Nothing was added to {output}: rows that were not sent could not "
            "be taken out again. What was answered is in the ledger; run the same command again, and it goes on.",
            kind="stopped_early",
        )


def _call_of(plan: ColumnPlan) -> Call:
    call = find_call(plan.call.call_id)
    assert call is not None, "a call is kept while the driver plans with it"
    return call


def _with_limits(summary: RunSummary, watch: Watch, mode: str) -> RunSummary:
    """The summary, with what the endpoint's limits and the job's own did, and the mode."""
    totals = watch.call.progress().totals()
    return replace(
        summary,
        throttled=totals.throttled,
        waiting_s=totals.waiting_s,
        bound_by=watch.bound_by,
        unleased_tasks=totals.unleased_tasks,
        mode=mode,
        stopped_early=watch.stopped_early if "not_sent" in summary.errors else None,
    )


@contextlib.contextmanager
def _cancelled_on_interrupt(spark: SparkSession, plan: ColumnPlan, ledger: str, mode: str) -> Iterator[None]:
    """Ends the Spark jobs of the block on Ctrl-C, and says how the job goes on.

    Raises:
        JobInterrupted: instead of `KeyboardInterrupt`.
    """
    context = spark.sparkContext
    tag = f"batch_infer-{plan.call.call_id}"
    context.addJobTag(tag)
    try:
        yield
    except KeyboardInterrupt:
        with contextlib.suppress(Exception):  # Ctrl-C may have ended the JVM as well
            context.cancelJobsWithTag(tag)
        raise JobInterrupted(_how_to_go_on(plan, ledger, mode)) from None
    except Py4JJavaError:
        call = find_call(plan.call.call_id)
        if call is None or call.fatal is None:
            raise
        # Spark's own exception holds the same sentence among thousands of characters of stack traces.
        raise JobRejected(call.fatal, kind="failed") from None
    finally:
        with contextlib.suppress(Exception):
            context.removeJobTag(tag)


def _how_to_go_on(plan: ColumnPlan, ledger: str, mode: str) -> str:
    call = find_call(plan.call.call_id)
    totals = call.progress().totals() if call is not None else Counters()
    again = "the same command again, or with mode='resume',"
    if mode in ADDING:  # interrupted before its input was kept, there is nothing to resume, and that is refused
        again = "the same command again"
    if plan.call.fresh or plan.call.retry_failed:  # the same command again would ask once more what it has asked
        again = "it again with mode='resume'" if mode != "resume" else "the same command again"
    return (
        f"Interrupted. Every reply that arrived is kept in the ledger at {ledger} "
        f"({totals.rows_done - totals.rows_from_ledger:,} requests were answered at the last count). "
        f"Run {again} to continue: what is kept is not paid for again."
    )


def _in_doubt(ledger: str, run: str) -> int | None:
    with contextlib.closing(Ledger.open(ledger)) as opened:
        if sum(opened.files.sizes("log").values()) > AUDIT_BELOW_BYTES:
            return None
        audit = opened.audit(run=run)
        return audit.in_doubt + audit.asked_again


def _ledger_beside(spark: SparkSession, output: str) -> str:
    """`<output>.ledger`, as a path where it is on this machine's disks, else as a URI."""
    root = Files(spark, output).root.rstrip("/")
    return (re.sub("^file:/+", "/", root) if root.startswith("file:") else root) + ".ledger"


def _request_column(df: DataFrame, prompt: str | None, request: Column | str | None) -> Column:
    if prompt is not None and request is None:
        return prompt_column(df, prompt)
    if request is not None and prompt is None:
        return column_named(df, request) if isinstance(request, str) else request
    raise ConfigError("run: give either a prompt template or a request column.")


def _check_columns(df: DataFrame, files: str | None, sample: str | None, added: Sequence[str]) -> None:
    kinds = {field.name: field.dataType.simpleString() for field in df.schema}
    for argument, name, allowed in (
        ("files", files, ("binary", "array<binary>")),
        ("sample", sample, ("tinyint", "smallint", "int", "bigint")),
    ):
        if name is None:
            continue
        check_columns([Field(name)], df.columns)
        kind = kinds.get(name, allowed[0])
        if kind not in allowed:
            raise ConfigError(f"run: {argument}={name!r} is {kind.upper()}; it is {' or '.join(allowed).upper()}.")
    taken = {name.lower() for name in (*added, *INTERNAL, OUTCOME, ANSWER)}
    seen: dict[str, str] = {}
    for name in df.columns:
        if name.lower() in seen:
            raise ConfigError(
                f"run: the input has two columns named {seen[name.lower()]!r} and {name!r}, which a table cannot keep "
                "apart. Rename or drop one of them first."
            )
        seen[name.lower()] = name
    clashes = [name for name in df.columns if name.lower() in taken]
    if clashes:
        raise ConfigError(
            f"run: the input already has the columns {', '.join(map(repr, clashes))}, which the job writes. "
            "Rename them first, or choose another result_column."
        )


def _reply_columns(details: bool, result_column: str) -> list[Column]:
    result = F.col(f"{ANSWER}.result").alias(result_column)
    if not details:
        return [result, F.col(f"{ANSWER}.error.message").alias("error_message")]
    return [result, *(F.col(f"{ANSWER}.{name}") for name in DETAIL_FIELDS)]


def prompt_column(df: DataFrame, template: str) -> Column:
    """A template as a column: its columns as text, NULL where any of them is NULL.

    Raises:
        ConfigError: the template is malformed, or names a column that `df` does not have.
    """
    parts = parse_template(template)
    check_columns(parts, df.columns)
    return F.concat(
        *(F.lit(part.text) if isinstance(part, Text) else column_named(df, part.path).cast("string") for part in parts)
    )


def column_named(df: DataFrame, path: str) -> Column:
    """The column of this name, dots and all, where there is one; else a path into a struct: `address.city`."""
    return F.col(quoted(path) if path.lower() in {name.lower() for name in df.columns} else path)


def _measures() -> list[Column]:
    ai = ANSWER
    failed = F.col(f"{ai}.error").isNotNull()
    paid = ~F.col(f"{ai}.from_ledger")
    usage = [F.sum(F.when(paid, F.col(f"{ai}.usage.{name}"))).alias(name) for name in USAGE_FIELDS[:3]]
    return [
        F.count(F.lit(1)).alias("rows"),
        F.count(F.when(F.col(ai).isNull(), 1)).alias("null"),
        F.count(F.when(failed, 1)).alias("failed"),
        F.count(F.when(F.col(f"{ai}.from_ledger"), 1)).alias("from_ledger"),
        F.count(F.when(paid & (F.col(f"{ai}.attempts") > 0), 1)).alias("asked"),
        F.sum(F.when(paid, F.col(f"{ai}.attempts"))).alias("attempts"),
        *usage,
        F.sum(F.when(paid, F.col(f"{ai}.cost_usd"))).alias("cost_usd"),
        *(F.count(F.when(F.col(f"{ai}.error.kind") == kind, 1)).alias(f"error {kind}") for kind in ROW_ERROR_KINDS),
    ]


def _summary(
    output: str, ledger: str, seen: Mapping[str, Any], seconds: float, *, is_priced: bool, in_doubt: int | None
) -> RunSummary:
    errors = {kind: seen[f"error {kind}"] for kind in ROW_ERROR_KINDS if seen[f"error {kind}"]}
    return RunSummary(
        output=output,
        ledger=ledger,
        rows=seen["rows"],
        succeeded=seen["rows"] - seen["null"] - seen["failed"],
        failed=seen["failed"],
        null=seen["null"],
        from_ledger=seen["from_ledger"],
        asked=seen["asked"],
        in_doubt=in_doubt,
        attempts=seen["attempts"] or 0,
        prompt_tokens=seen["prompt_tokens"],
        completion_tokens=seen["completion_tokens"],
        total_tokens=seen["total_tokens"],
        cost_usd=(seen["cost_usd"] or 0.0) if is_priced else None,
        seconds=seconds,
        errors=errors,
    )

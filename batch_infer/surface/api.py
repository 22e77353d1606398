"""Owns the public functions that speak Spark: their signatures and what they promise. Adds little of its own.

Each argument of a call stands here and in `contract.options`, and nowhere else on its way in. On the driver.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql.types import DataType

from batch_infer.contract.errors import ConfigError
from batch_infer.contract.misspelt import names_near_misses
from batch_infer.contract.options import DEFAULT_STOP_AFTER_FAILURES, CallOptions, JobOptions
from batch_infer.spark.column import column_of_call
from batch_infer.spark.functions.registry import register_functions
from batch_infer.spark.job import run as job
from batch_infer.spark.job.summary import RunSummary
from batch_infer.surface.progress import ProgressLine

ResponseFormat: TypeAlias = str | Mapping[str, Any] | DataType | type
"""A type as DDL or as Spark's, JSON as text or a mapping, a pydantic class, or a dataclass."""


@names_near_misses
def register(spark: SparkSession, *, prefix: str = "", keep_limits: bool = True) -> list[str]:
    """Registers the SQL functions in this session.

    Also sets, unless the user has: 256 rows in an Arrow batch, and (with `keep_limits`) that a LIMIT stays below the
    function, so that `SELECT ai_query(…) FROM (SELECT … LIMIT 10)` calls ten times.

    Args:
        spark: The session.
        prefix: Text put before each name, where a built-in function of the same name exists.
        keep_limits: Whether to exclude the optimizer rules that move a projection below a limit.

    Returns:
        The names registered.

    Raises:
        ConfigError: the session has a built-in function of one of the names, which would win.
    """
    return register_functions(spark, prefix=prefix, keep_limits=keep_limits)


@names_near_misses
def ai_query(
    endpoint: str | None,
    request: Column | str,
    *,
    return_type: str | DataType | None = None,
    fail_on_error: bool = True,
    model_parameters: Mapping[str, Any] | str | None = None,
    response_format: ResponseFormat | None = None,
    files: Column | str | None = None,
    details: bool = False,
    sample: Column | int = 0,
    fresh: bool = False,
) -> Column:
    """Asks a model endpoint once for each row.

    Lazy: nothing is sent before an action. A NULL request gives NULL, without a call. Requests of one task run
    concurrently, and rows come back in order. The calls cost money where the endpoint does.

    Args:
        endpoint: A registered name, `'provider/model'`, `'local/chat'` or `'local/embed'`; `None` for the session's
            `spark.batch_infer.default_endpoint`.
        request: The prompt (STRING), the messages (ARRAY<STRUCT<role, content>>, ARRAY<STRING> of their JSON, or a
            STRING that is a JSON array of messages), or a custom model's inputs (STRUCT). Text is a column's name; a
            constant prompt is `F.lit("…")`.
        return_type: T, the type of the result. Default: STRING, ARRAY<FLOAT> for embeddings, or the type of
            `response_format` where that is one.
        fail_on_error: `True`: the first row that fails for good ends the job. `False`: the column is
            `STRUCT<result: T, errorMessage: STRING>`.
        model_parameters: Passed to the endpoint as they are: `max_tokens`, `temperature`, `tools`, …; also as the text
            of a JSON object.
        response_format: DDL (`'STRUCT<…>'`), JSON (`{"type": "json_object"}` …), a pydantic class or a dataclass:
            constrains the reply, which is checked, and asked for again with what is wrong, up to the endpoint's
            `max_repairs`.
        files: A column of images: BINARY or ARRAY<BINARY>. Chat endpoints only.
        details: `True`: the column is the whole row contract, with error, usage and cost; a row never fails the job.
        sample: Part of the request's identity: equal prompts with different samples are different requests.
        fresh: Ask again although the answer is known.

    Returns:
        The column.

    Raises:
        ConfigError: an argument is wrong; before anything is sent.
    """
    return column_of_call(CallOptions(**locals()))


@names_near_misses
def run(
    df: DataFrame,
    *,
    output: str,
    endpoint: str | None = None,
    prompt: str | None = None,
    request: Column | str | None = None,
    format: str = "parquet",  # noqa: A002 - Spark's own name for it
    mode: Literal["error", "overwrite", "append", "merge", "resume"] = "error",
    merge_key: Sequence[str] = (),
    ledger: str | None = None,
    return_type: str | DataType | None = None,
    model_parameters: Mapping[str, Any] | str | None = None,
    response_format: ResponseFormat | None = None,
    files: str | None = None,
    sample: str | None = None,
    fresh: bool = False,
    retry_failed: bool = False,
    details: bool = True,
    result_column: str = "result",
    fail_on_error: bool = False,
    max_error_ratio: float = 1.0,
    stop_after_failures: int | None = DEFAULT_STOP_AFTER_FAILURES,
    progress: bool = True,
) -> RunSummary:
    """Asks the endpoint once for each distinct request of `df`, and writes the rows with their replies.

    The output has the input's columns, then the row contract's (`result`, `error`, `usage`, `cost_usd`, …). Rows in =
    rows out. Every check that needs no reply is made before the first call. Each reply is in the ledger before anything
    is made of it, so that a job that died is finished by running it again, and pays only for what is missing.

    Args:
        df: The input.
        output: Where the table goes: a path.
        endpoint: As for `ai_query`.
        prompt: A template over columns: `"Summarise in one sentence: {body}"`. A NULL column makes a NULL request.
        request: Instead of `prompt`: a column of prompts, messages, or a custom model's inputs.
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
        progress: Draw a progress line on standard error.

    Raises:
        ConfigError: an argument is wrong, or a column is missing; before anything is paid.
        SinkError: the output or the ledger cannot be written, or another run is writing to the output now.
        JobRejected: no row can succeed, or (with `fail_on_error`) a row failed; says why. What was answered is kept.
        JobInterrupted: Ctrl-C; the job's Spark jobs are cancelled, and what was answered is kept.
    """
    given = locals()
    if not isinstance(df, DataFrame) and not hasattr(df, "sparkSession"):
        kind = type(df).__module__.partition(".")[0]
        raise ConfigError(
            f"run: the input is a Spark DataFrame; got {kind}'s {type(df).__name__}. Make one of it with "
            f"spark.createDataFrame({'df.to_pandas()' if kind in ('polars', 'pyarrow') else 'df'})."
        )
    call = CallOptions(**{name: given[name] for name in CallOptions.__dataclass_fields__})
    options = JobOptions(**{name: given[name] for name in JobOptions.__dataclass_fields__})
    line = ProgressLine(str(endpoint or "ai_query")) if progress else None
    try:
        return job.run(df, call, options, on_progress=line.update if line is not None else None)
    except job.JobInterrupted as interrupted:
        if line is not None:
            line.close()
            line = None
        print(interrupted, file=sys.stderr, flush=True)
        raise
    finally:
        if line is not None:
            line.close()

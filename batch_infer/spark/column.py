"""Owns `ai_query` as a Python function that returns a Column. Does not check arguments: `spark.planning` does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyspark.sql import Column
from pyspark.sql import functions as F  # noqa: N812 - Spark's own convention
from pyspark.sql.types import DataType

from batch_infer.spark.planning import as_sent, check_ledger, plan_column
from batch_infer.spark.session import active_session
from batch_infer.spark.udf import build_udf


def ai_query(
    endpoint: str | None,
    request: Column | str,
    *,
    return_type: str | DataType | None = None,
    fail_on_error: bool = True,
    model_parameters: Mapping[str, Any] | str | None = None,
    response_format: str | Mapping[str, Any] | DataType | None = None,
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
            STRING that is a JSON array of messages), or a custom model's inputs (STRUCT); text is a column's name.
        return_type: T, the type of the result. Default: STRING, or ARRAY<FLOAT> for embeddings.
        fail_on_error: `True`: the first row that fails for good ends the job. `False`: the column is
            `STRUCT<result: T, errorMessage: STRING>`.
        model_parameters: Passed to the endpoint as they are: `max_tokens`, `temperature`, `tools`, …; also as the text
            of a JSON object.
        response_format: JSON text (`{"type": "json_object"}` …) or DDL (`'STRUCT<…>'`): constrains the reply, which is
            checked, and asked for again with what is wrong, up to the endpoint's `max_repairs`.
        files: A column of images: BINARY or ARRAY<BINARY>. Chat endpoints only.
        details: `True`: the column is the whole row contract, with error, usage and cost; a row never fails the job.
        sample: Part of the request's identity: equal prompts with different samples are different requests.
        fresh: Ask again although the answer is known.

    Returns:
        The column.

    Raises:
        ConfigError: an argument is wrong; before anything is sent.
    """
    has_sample = isinstance(sample, Column) or sample != 0
    plan = plan_column(
        active_session(),
        endpoint,
        return_type=return_type,
        fail_on_error=fail_on_error,
        model_parameters=model_parameters,
        response_format=response_format,
        details=details,
        has_files=files is not None,
        has_sample=has_sample,
        fresh=fresh,
    )
    prompt = F.col(request) if isinstance(request, str) else request
    arguments = [as_sent(prompt, plan.call.endpoint.task)]
    if files is not None:
        arguments.append(F.col(files) if isinstance(files, str) else files)
    if has_sample:
        arguments.append((sample if isinstance(sample, Column) else F.lit(sample)).cast("bigint"))
    check_ledger(plan)
    # A vectorised UDF cannot give a NULL struct, so the NULL of a NULL request is made around it.
    answer = build_udf(plan)(*arguments)
    return F.when(prompt.isNotNull(), answer)

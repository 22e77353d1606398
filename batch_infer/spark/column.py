"""Owns a call as a Column. Does not check arguments: `spark.planning` does. On the driver."""

from __future__ import annotations

import re
from typing import Any

from pyspark.sql import Column
from pyspark.sql import functions as F  # noqa: N812 - Spark's own convention

from batch_infer.contract.errors import ConfigError
from batch_infer.contract.options import CallOptions
from batch_infer.spark.planning import as_sent, check_ledger, plan_column, typed_by_format
from batch_infer.spark.session import active_session
from batch_infer.spark.udf import build_udf

_COLUMN_NAME = re.compile(r"[\w.`$:-]+|`[^`]+`")
"""Text that can be a column's name, or a path into a struct."""


def column_of_call(options: CallOptions, function: str = "ai_query") -> Column:
    """The Column of a call whose `request`, `files` and `sample` are Columns or names; see `batch_infer.ai_query`.

    Raises:
        ConfigError: an argument is wrong; before anything is sent.
    """
    prompt = as_column(options.request, f"{function}: the request")
    plan = plan_column(active_session(), typed_by_format(options), function=function)
    arguments = [as_sent(prompt, plan.call.endpoint.task)]
    if options.has_files:
        arguments.append(as_column(options.files, f"{function}: files"))
    if options.has_sample:
        sample = options.sample
        arguments.append((sample if isinstance(sample, Column) else F.lit(sample)).cast("bigint"))
    check_ledger(plan)
    # A vectorised UDF cannot give a NULL struct, so the NULL of a NULL request is made around it.
    return F.when(prompt.isNotNull(), build_udf(plan)(*arguments))


def as_column(given: Any, what: str) -> Column:
    """A Column, or the column of a name.

    Raises:
        ConfigError: it is neither, or text that is no name; says how to write a constant.
    """
    if isinstance(given, Column):
        return given
    if not isinstance(given, str):
        kind = f"{type(given).__module__.partition('.')[0]}'s {type(given).__name__}"
        raise ConfigError(
            f"{what} is a Column or a column's name; got {kind}. A DataFrame of another library becomes Spark's with "
            "spark.createDataFrame(df)."
        )
    if not _COLUMN_NAME.fullmatch(given):
        raise ConfigError(
            f"{what} {given[:60]!r} is no column's name. For a constant text write "
            f"F.lit({given[:60]!r}); for a column of that name, F.col('`…`')."
        )
    return F.col(given)

"""Owns the row contract: the columns that `details => true` and jobs give, as Spark DDL. Does not build rows."""

from __future__ import annotations

from enum import Enum


class Shape(Enum):
    """What one `ai_query` column looks like."""

    RESULT = "result"
    """T itself; the first failure stops the job (`failOnError => true`)."""
    RESULT_AND_ERROR = "result_and_error"
    """`STRUCT<result: T, errorMessage: STRING>` (`failOnError => false`)."""
    DETAILS = "details"
    """The whole row contract (`details => true`)."""


USAGE_FIELDS = ("prompt_tokens", "completion_tokens", "total_tokens", "cached_tokens", "reasoning_tokens")

DETAIL_FIELDS = (
    "error",
    "usage",
    "cost_usd",
    "finish_reason",
    "reasoning",
    "tool_calls",
    "choices",
    "message",
    "model",
    "attempts",
    "latency_ms",
    "request_key",
    "from_ledger",
)
"""The row contract beside `result`, in its order."""


def column_ddl(shape: Shape, result: str) -> str:
    """The column's type as Spark DDL, around the result's type T."""
    if shape is Shape.RESULT:
        return result
    if shape is Shape.RESULT_AND_ERROR:
        return f"STRUCT<result: {result}, errorMessage: STRING>"
    usage = ", ".join(f"{name}: BIGINT" for name in USAGE_FIELDS)
    return (
        f"STRUCT<result: {result}, "
        "error: STRUCT<kind: STRING, status: INT, message: STRING, retryable: BOOLEAN>, "
        f"usage: STRUCT<{usage}>, "
        "cost_usd: DOUBLE, finish_reason: STRING, reasoning: STRING, "
        "tool_calls: ARRAY<STRUCT<id: STRING, name: STRING, arguments: STRING>>, "
        f"choices: ARRAY<{result}>, message: STRING, model: STRING, attempts: INT, latency_ms: BIGINT, "
        "request_key: STRING, from_ledger: BOOLEAN>"
    )

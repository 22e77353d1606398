"""Owns the Python UDF behind every `ai_query` column: Spark's batches in, the engine's outcomes back as columns.

An iterator UDF, because only that sees batch after batch and may read ahead: Arrow arrays where Spark has
`arrow_udf` (4.1 and later), pandas series converted to Arrow before that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Tuple  # noqa: UP035

import pyarrow as pa
from pyspark import TaskContext
from pyspark.sql import functions

from batch_infer.adapters.worker import CallPlan, answer
from batch_infer.contract.progress import TaskId
from batch_infer.contract.rows import Shape, column_ddl
from batch_infer.engine.window import Batch
from batch_infer.spark.arrow import column_of, requests_of

HAS_ARROW_UDF = hasattr(functions, "arrow_udf")


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnPlan:
    """A call, and how its column looks. Frozen and picklable."""

    call: CallPlan
    shape: Shape
    result_ddl: str
    """T, as DDL."""
    has_files: bool
    """The UDF's second argument is `files`."""
    has_sample: bool
    """The UDF's last argument is `sample`."""

    @property
    def ddl(self) -> str:
        """The column's type."""
        return column_ddl(self.shape, self.result_ddl)


def build_udf(plan: ColumnPlan) -> Any:
    """The UDF of a plan. Its arguments: request, then files and sample where the plan has them.

    Nondeterministic, so that Spark neither repeats it for a filter on its result nor merges it away.
    """
    if HAS_ARROW_UDF:
        udf = functions.arrow_udf(_over_arrow(plan), returnType=plan.ddl)
    else:
        udf = functions.pandas_udf(_over_pandas(plan), returnType=plan.ddl)
    return udf.asNondeterministic()


def evaluate(plan: ColumnPlan, columns: Iterator[tuple[pa.Array, ...]]) -> Iterator[pa.Array]:
    """Answers batches of argument columns with batches of the result column, of the same lengths, in order."""
    context = TaskContext.get()
    task = TaskId(context.stageId(), context.partitionId(), context.taskAttemptId())
    identity = plan.call.identity()

    def batches() -> Iterator[Batch]:
        for arguments in columns:
            files = arguments[1] if plan.has_files else None
            sample = arguments[-1] if plan.has_sample else None
            yield Batch(requests_of(arguments[0], files, sample, identity))

    for done in answer(plan.call, task, batches()):
        yield column_of(done.outcomes, done.requests, plan.shape, plan.call.result_type, plan.call.endpoint)


def _over_arrow(plan: ColumnPlan) -> Callable[..., Any]:
    def ai_query(columns: Iterator[Any]) -> Iterator[pa.Array]:
        return evaluate(plan, (item if isinstance(item, tuple) else (item,) for item in columns))

    several = plan.has_files or plan.has_sample
    # Spark tells from these annotations which kind of UDF it is; it looks for this form of tuple.
    ai_query.__annotations__ = {
        "columns": Iterator[Tuple[pa.Array, ...]] if several else Iterator[pa.Array],  # noqa: UP006
        "return": Iterator[pa.Array],
    }
    return ai_query


def _over_pandas(plan: ColumnPlan) -> Callable[..., Any]:
    from batch_infer.spark import pandas_border  # noqa: PLC0415 - only where Spark has no arrow_udf

    return pandas_border.over_pandas(plan, evaluate)

"""Owns the Python UDF behind every `ai_query` column: Spark's batches in, the engine's outcomes back as columns.

An iterator UDF, because only that sees batch after batch and may read ahead: Arrow arrays where Spark has
`arrow_udf` (4.1 and later), pandas series converted to Arrow before that.

Plans on the driver, evaluates on workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Tuple  # noqa: UP035

import pyarrow as pa
from pyspark import TaskContext
from pyspark.sql import functions

from batch_infer.adapters.worker.task import answer
from batch_infer.contract.plan import CallPlan
from batch_infer.contract.progress import TaskId
from batch_infer.contract.rows import Shape, column_ddl
from batch_infer.engine.batches import Batch
from batch_infer.spark.arrow import column_of, requests_of, typed

HAS_ARROW_UDF = hasattr(functions, "arrow_udf")

Columns = Iterator[tuple[pa.Array, ...]]
"""The argument columns of a UDF, batch after batch."""


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

    With a ledger it is deterministic: Spark prunes the rows that it need not ask for, and what it evaluates twice is
    answered from the ledger. Without one, or where asked afresh, it is nondeterministic, so that Spark does not
    evaluate it again for a filter on its result.
    """
    several = plan.has_files or plan.has_sample
    udf = iterator_udf(lambda columns: evaluate(plan, columns), plan.ddl, several=several, name=plan.call.function)
    remembers = plan.call.ledger is not None and not plan.call.fresh
    return udf if remembers else udf.asNondeterministic()


def iterator_udf(
    work: Callable[[Columns], Iterator[pa.Array]], ddl: str, *, several: bool, name: str = "ai_query"
) -> Any:
    """A UDF that sees its argument columns batch after batch, as Arrow arrays, whatever the Spark version.

    Args:
        work: From batches of argument columns to batches of the result, of the same total length. Must pickle.
        ddl: The result's type.
        several: Whether it has more than one argument.
        name: What Spark's plans and generated column names call it.
    """
    if not HAS_ARROW_UDF:
        from batch_infer.spark import pandas_border  # noqa: PLC0415 - only where Spark has no arrow_udf

        return functions.pandas_udf(pandas_border.over_pandas(work, ddl, several=several), returnType=ddl)

    def call(columns: Iterator[Any]) -> Iterator[pa.Array]:
        return work(item if isinstance(item, tuple) else (item,) for item in columns)

    call.__name__ = name

    # Spark tells from these annotations which kind of UDF it is; it looks for this form of tuple.
    call.__annotations__ = {
        "columns": Iterator[Tuple[pa.Array, ...]] if several else Iterator[pa.Array],  # noqa: UP006
        "return": Iterator[pa.Array],
    }
    return functions.arrow_udf(call, returnType=ddl)


def evaluate(plan: ColumnPlan, columns: Columns) -> Iterator[pa.Array]:
    """Answers batches of argument columns with batches of the result column, of the same lengths, in order."""
    identity, reader = plan.call.identity(), plan.call.reader()

    def batches() -> Iterator[Batch]:
        for arguments in columns:
            files = arguments[1] if plan.has_files else None
            sample = arguments[-1] if plan.has_sample else None
            yield Batch(requests_of(arguments[0], files, sample, identity, function=plan.call.function))

    for done in answer(plan.call, current_task(), batches(), reader):
        outcomes = typed(done.outcomes, done.requests, reader, fail_on_error=plan.call.fail_on_error)
        yield column_of(outcomes, done.requests, plan.shape, reader, plan.call.endpoint)


def current_task() -> TaskId:
    """The task attempt that this worker is running."""
    context = TaskContext.get()
    return TaskId(context.stageId(), context.partitionId(), context.taskAttemptId())

"""Owns how a job ends before its end: Ctrl-C, and Spark's exception for what a task has found. On the driver."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from py4j.protocol import Py4JJavaError
from pyspark.sql import SparkSession

from batch_infer.contract.errors import JobRejected
from batch_infer.contract.progress import Counters
from batch_infer.spark.job.work_folder import ADDING
from batch_infer.spark.session import find_call
from batch_infer.spark.udf import ColumnPlan


class JobInterrupted(KeyboardInterrupt):
    """Ctrl-C while a job ran. Its text says what is kept, and how to go on."""


@contextlib.contextmanager
def cancelled_on_interrupt(spark: SparkSession, plan: ColumnPlan, ledger: str, mode: str) -> Iterator[None]:
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

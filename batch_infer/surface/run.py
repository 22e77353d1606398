"""Owns `batch_infer.run` as people call it: the job engine with a progress line. Adds no behaviour of its own."""

from __future__ import annotations

import sys
from typing import Any

from pyspark.sql import DataFrame

from batch_infer.spark.job import run as job
from batch_infer.spark.job.run import RunSummary
from batch_infer.surface.progress import ProgressLine


def run(df: DataFrame, *, progress: bool = True, **options: Any) -> RunSummary:
    """Asks an endpoint once for each row of `df`, and writes the rows with their replies; see `spark.job.run.run`.

    Args:
        df: The input.
        progress: Draw a progress line on standard error.
        **options: `endpoint`, `prompt` or `request`, `output`, `format`, `mode`, … as `spark.job.run.run` has them.
    """
    line = ProgressLine(str(options.get("endpoint") or "ai_query")) if progress else None
    try:
        return job.run(df, on_progress=line.update if line is not None else None, **options)
    except job.JobInterrupted as interrupted:
        if line is not None:
            line.close()
            line = None
        print(interrupted, file=sys.stderr, flush=True)
        raise
    finally:
        if line is not None:
            line.close()

"""Ask a model endpoint once for each row of a table: `spark-submit jobs/ai_query.py --help`."""

from __future__ import annotations

import sys

from pyspark.sql import SparkSession

import batch_infer as bi
from batch_infer.surface.job_arguments import parse_job, reader_options, run_options
from batch_infer.surface.progress import summary_lines

INTERRUPTED = 130
"""The exit status after Ctrl-C, as shells have it."""
STOPPED_EARLY = 3
"""The exit status when the table was written, and some of its rows were never sent."""


def main() -> int:
    """Runs the job; the exit status is 0 when the table was written, 2 for a wrong argument, 1 for a failure."""
    options = parse_job()
    spark = SparkSession.builder.appName("batch_infer ai_query").getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    try:
        reader = spark.read.format(options.input_format).options(**reader_options(options))
        rows = reader.load(options.input)
        if options.limit is not None:
            rows = rows.limit(options.limit)
        summary = bi.run(rows, **run_options(options))
    except bi.ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except bi.BatchInferError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    finally:
        spark.stop()
    print("\n".join(summary_lines(summary)))
    return STOPPED_EARLY if summary.stopped_early is not None else 0


if __name__ == "__main__":
    sys.exit(main())

"""Begin a job, or continue the one that broke off; what was paid is kept: `spark-submit jobs/resume.py --help`."""

from __future__ import annotations

import argparse
import sys

from pyspark.sql import SparkSession

import batch_infer as bi


def main() -> int:
    """Begins the job, or continues it; the exit status is 1 when another try may help, 2 for a wrong argument."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--input", required=True, help="a Parquet table")
    parser.add_argument("--prompt", required=True, help="template over columns")
    parser.add_argument("--output", required=True, help="path of the table to write")
    parser.add_argument("--endpoint", default="local/chat")
    options = parser.parse_args()
    spark = SparkSession.builder.appName("resume").getOrCreate()
    rows = spark.read.parquet(options.input)
    try:
        summary = bi.run(rows, endpoint=options.endpoint, prompt=options.prompt, output=options.output, mode="resume")
    except bi.ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except bi.BatchInferError as error:
        print(f"error: {error} The same command goes on with it.", file=sys.stderr)
        return 1
    print(f"{summary.succeeded:,} of {summary.rows:,} rows answered, {summary.from_ledger:,} of them free")
    return 0


if __name__ == "__main__":
    sys.exit(main())

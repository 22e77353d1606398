"""Embed a column of a table: `spark-submit jobs/embed.py --help`."""

from __future__ import annotations

import argparse
import sys

from pyspark.sql import SparkSession

import batch_infer as bi


def main() -> int:
    """Writes the input's columns and the vector as Parquet; the exit status is 2 for a wrong argument."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--input", required=True, help="a Parquet table")
    parser.add_argument("--column", required=True, help="the text to embed")
    parser.add_argument("--output", required=True, help="path of the table to write")
    parser.add_argument("--endpoint", default="local/embed")
    options = parser.parse_args()
    spark = SparkSession.builder.appName("embed").getOrCreate()
    rows = spark.read.parquet(options.input)
    try:
        summary = bi.run(rows, endpoint=options.endpoint, request=options.column, output=options.output,
                         mode="overwrite", result_column="embedding", details=False)  # fmt: skip
    except bi.ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{summary.succeeded:,} of {summary.rows:,} rows embedded: {summary.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Extract typed columns from a column of text: `spark-submit jobs/extract.py --help`."""

from __future__ import annotations

import argparse
import sys

from pyspark.sql import SparkSession
from pyspark.sql import functions as F  # noqa: N812 - Spark's own convention

import batch_infer as bi


def main() -> int:
    """Writes the input's columns and the fields as columns; the exit status is 2 for a wrong argument."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--input", required=True, help="a Parquet table")
    parser.add_argument("--column", required=True, help="the text")
    parser.add_argument("--fields", required=True, help="as DDL: 'order_number STRING, amount DOUBLE'")
    parser.add_argument("--output", required=True, help="path of the table to write")
    parser.add_argument("--endpoint", default="local/chat")
    options = parser.parse_args()
    spark = SparkSession.builder.appName("extract").getOrCreate()
    prompt = F.concat(F.lit(f"Extract {options.fields} from this text:\n\n"), F.col(options.column))
    kind = f"STRUCT<{', '.join(part.strip().replace(' ', ': ', 1) for part in options.fields.split(','))}>"
    try:
        found = bi.ai_query(options.endpoint, prompt, response_format=kind, fail_on_error=False)
    except bi.ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    rows = spark.read.parquet(options.input).withColumn("found", found)
    rows.select("*", "found.result.*", "found.errorMessage").drop("found").write.mode("overwrite").parquet(
        options.output
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

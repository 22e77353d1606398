"""Classify the rows of a CSV into labels of your own: `spark-submit jobs/classify_csv.py --help`."""

from __future__ import annotations

import argparse
import json
import sys

from pyspark.sql import SparkSession

import batch_infer as bi


def main() -> int:
    """Writes the input's columns, the label and what it cost as Parquet; the exit status is 2 for a wrong argument."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--input", required=True, help="a CSV with a header")
    parser.add_argument("--output", required=True, help="path of the table to write")
    parser.add_argument("--prompt", required=True, help="template over columns: 'Sort this message: {body}'")
    parser.add_argument("--labels", required=True, help="comma-separated")
    parser.add_argument("--endpoint", default="local/chat")
    options = parser.parse_args()
    labels = [label.strip() for label in options.labels.split(",")]
    schema = {"type": "object", "properties": {"label": {"enum": labels}}, "required": ["label"]}
    form = {"type": "json_schema", "json_schema": {"name": "label", "schema": schema}}
    spark = SparkSession.builder.appName("classify_csv").getOrCreate()
    rows = spark.read.csv(options.input, header=True, multiLine=True, escape='"')
    try:
        summary = bi.run(rows, endpoint=options.endpoint, prompt=options.prompt, response_format=json.dumps(form),
                         return_type="STRUCT<label: STRING>", output=options.output, mode="overwrite")  # fmt: skip
    except bi.ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{summary.succeeded:,} of {summary.rows:,} rows classified: {summary.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

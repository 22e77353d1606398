"""Owns the ledger as a DataFrame: one row a request, failed ones too. Does not write requests or replies.

On the driver.
"""

from __future__ import annotations

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.pandas.types import from_arrow_schema

from batch_infer.adapters.ledger import SCHEMA, Ledger
from batch_infer.spark.tables.filesystem import read_parquet


def inference_table(spark: SparkSession, path: str) -> DataFrame:
    """Every request that a ledger has seen the end of, newest logs included: what was asked, answered and billed.

    Contract: brings the ledger's Parquet form up to date first (on the driver), then reads it; sends nothing. May be
    read while a job is writing: a running task's rows appear when its log is closed.

    Args:
        spark: The session.
        path: The ledger, as jobs print it: `<output>.ledger`, or `spark.batch_infer.ledger`.

    Returns:
        The columns time, endpoint, model, status, duration_ms, attempts, usage, cost_usd, request and reply as JSON,
        request_key, error.

    Raises:
        ConfigError: there is no ledger at the path.
        SinkError: it cannot be read or written.
    """
    ledger = Ledger.existing(path)
    ledger.compact()
    schema = from_arrow_schema(SCHEMA)
    if not ledger.files.sizes("table"):
        return spark.createDataFrame([], schema)
    return read_parquet(spark, f"{ledger.files.root.rstrip('/')}/table", schema=schema)

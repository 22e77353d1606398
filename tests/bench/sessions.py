"""Owns the Spark sessions of the measurements, and their input."""

from __future__ import annotations

import os
import sys

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - Spark's own convention

import batch_infer as bi
from tests.support.paths import ROOT


def local_session(scratch: str, cores: int = 2, **settings: str) -> SparkSession:
    """A quiet session with as many task slots as `cores`; what it writes goes under `scratch`."""
    os.environ["PYSPARK_PYTHON"] = os.environ["PYSPARK_DRIVER_PYTHON"] = sys.executable
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(ROOT)]))
    builder = (
        SparkSession.builder.master(f"local[{cores}]")
        .appName("batch_infer measurement")
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.sql.shuffle.partitions", "2")
        .config("spark.sql.warehouse.dir", f"{scratch}/warehouse")
        .config("spark.local.dir", f"{scratch}/spark")
        .config("spark.driver.memory", "1g")
        .config("spark.driver.extraJavaOptions", f"-Dlog4j2.configurationFile=file:{ROOT}/jobs/log4j2.properties")
    )
    for name, value in settings.items():
        builder = builder.config(name.replace("__", "."), value)
    spark = builder.getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    bi.register(spark)
    return spark


def prompts(spark: SparkSession, rows: int, partitions: int, chars: int = 120) -> DataFrame:
    """`id`, and `prompt`: a distinct text of about `chars` characters a row."""
    text = F.concat(F.lit("ticket "), F.col("id").cast("string"), F.lit(": " + "lorem ipsum " * 1000).substr(1, chars))
    return spark.range(0, rows, 1, partitions).withColumn("prompt", text)

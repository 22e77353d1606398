"""Owns what can be said of Delta tables without touching one: names, the MERGE statement, how to get its jar. Pure.

On the driver.
"""

from __future__ import annotations

from collections.abc import Sequence

from batch_infer.contract.errors import ConfigError
from batch_infer.spark.tables.rules import Schema, names_in, quoted

DELTA_EXTENSION = "io.delta.sql.DeltaSparkSessionExtension"
DELTA_CATALOG = "org.apache.spark.sql.delta.catalog.DeltaCatalog"
_DELTA_RELEASES = {"3.5": "delta-spark_{scala}:3.3.2", "4": "delta-spark_{spark}_{scala}:4.4.0"}
"""Jars by Spark version: Delta 3.3 is the last for Spark 3.5; since Delta 4.1 a jar's name holds Spark's version.

Source: Maven Central's metadata of io.delta. The newest is 4.4.0; Python's delta-spark 4.4.1 has no jar of its own."""
_NOT_IN_DELTA_NAMES = frozenset(" ,;{}()\n\t=")
"""Source: Delta's protocol without column mapping, which follows Parquet's old rule for names."""


def check_names(schema: Schema) -> None:
    """Refuses names that Delta has no room for. Raises `ConfigError`."""
    for place in names_in(schema, ""):
        unfit = sorted(_NOT_IN_DELTA_NAMES.intersection(place))
        if unfit:
            raise ConfigError(f"a Delta column's name cannot hold {unfit[0]!r}: {place!r}. Rename it with .alias(…).")


def merge_statement(path: str, view: str, key: Sequence[str], columns: Sequence[str]) -> str:
    """MERGE by key: rows of the view update those of the table, or are inserted. NULL keys are equal to each other."""
    on = " AND ".join(f"t.{quoted(name)} <=> s.{quoted(name)}" for name in key)
    updates = ", ".join(f"t.{quoted(name)} = s.{quoted(name)}" for name in columns if name not in key)
    names = ", ".join(map(quoted, columns))
    values = ", ".join(f"s.{quoted(name)}" for name in columns)
    matched = f"WHEN MATCHED THEN UPDATE SET {updates} " if updates else ""
    return (
        f"MERGE INTO delta.{quoted(path)} t USING {quoted(view)} s ON {on} {matched}"  # noqa: S608 - all are quoted
        f"WHEN NOT MATCHED THEN INSERT ({names}) VALUES ({values})"
    )


def delta_package(spark_version: str, scala_version: str) -> str:
    """The Maven coordinates of Delta for a running Spark, as `--packages` takes them."""
    spark = ".".join(spark_version.split(".")[:2])
    scala = ".".join(scala_version.split(".")[:2])
    release = _DELTA_RELEASES.get(spark) or _DELTA_RELEASES["4"]
    return f"io.delta:{release.format(spark=spark, scala=scala)}"


def how_to_get_delta(missing: str, spark_version: str, scala_version: str) -> str:
    """The message for a session that cannot speak Delta: what is missing, and the lines that add it."""
    package = delta_package(spark_version, scala_version)
    catalog = "spark.sql.catalog.spark_catalog"
    return (
        f"format 'delta': {missing}. It must be there when the session starts; start it again with either\n"
        f"  spark-submit --packages {package} \\\n"
        f"    --conf spark.sql.extensions={DELTA_EXTENSION} \\\n"
        f"    --conf {catalog}={DELTA_CATALOG} …\n"
        "or, in Python, after spark.stop() and in a fresh process if the jar is what is missing:\n"
        "  SparkSession.builder \\\n"
        f'    .config("spark.jars.packages", "{package}") \\\n'
        f'    .config("spark.sql.extensions", "{DELTA_EXTENSION}") \\\n'
        f'    .config("{catalog}", "{DELTA_CATALOG}") \\\n'
        "    .getOrCreate()\n"
        "or write format='parquet'."
    )

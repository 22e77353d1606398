"""A local[2] session that speaks Delta. Needs a pytest process of its own: one JVM and its jars serve one process.

The jars come from Maven Central through `mvn`, once, into the cache; `--packages` is the way of users.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from xml.sax.saxutils import escape

import pytest
from pyspark import SparkContext
from pyspark.sql import SparkSession

from batch_infer.adapters.local.weights import default_cache_dir
from batch_infer.spark.tables.delta_rules import DELTA_CATALOG, DELTA_EXTENSION, delta_package

# Spark has these, and newer ones; or no test needs them.
LEFT_OUT = (
    "com.fasterxml.jackson.core",
    "com.fasterxml.jackson.datatype",
    "io.unitycatalog",
    "org.apache.hadoop",
    "org.apache.parquet",
    "org.roaringbitmap",
    "org.scala-lang",
    "org.slf4j",
)


def _fetch(package: str, folder: Path) -> str | None:
    """Copies a package's jars into the folder; says why, when it cannot."""
    maven = shutil.which("mvn")
    if maven is None:
        return "mvn is not installed"
    draft = folder.with_suffix(f".{os.getpid()}.draft")
    draft.mkdir(parents=True)
    group, artifact, version = package.split(":")
    exclusions = "".join(
        f"<exclusion><groupId>{escape(name)}</groupId><artifactId>*</artifactId></exclusion>" for name in LEFT_OUT
    )
    (draft / "pom.xml").write_text(
        "<project><modelVersion>4.0.0</modelVersion><groupId>jars</groupId><artifactId>jars</artifactId><version>1</version>"
        f"<dependencies><dependency><groupId>{group}</groupId><artifactId>{artifact}</artifactId><version>{version}</version>"
        f"<exclusions>{exclusions}</exclusions></dependency></dependencies></project>"
    )
    command = [
        maven,
        "-B",
        "-q",
        "-f",
        str(draft / "pom.xml"),
        "dependency:copy-dependencies",
        f"-DoutputDirectory={draft}",
    ]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    except subprocess.TimeoutExpired:
        return "mvn took more than 240 s"
    if ended.returncode:
        return f"mvn failed: {ended.stdout.strip()[:500]}"
    draft.rename(folder)
    return None


@pytest.fixture(scope="session")
def delta_jars():
    """The jars of Delta for this Spark, as `spark.jars` takes them."""
    import pyspark

    package = delta_package(pyspark.__version__, "2.12" if pyspark.__version__.startswith("3.") else "2.13")
    folder = default_cache_dir() / "jars" / package.replace(":", "_")
    if not folder.exists():
        reason = _fetch(package, folder)
        if reason is not None:
            pytest.skip(f"no jar of {package}: {reason}")
    return ",".join(str(path) for path in sorted(folder.glob("*.jar")))


@pytest.fixture(scope="session")
def spark(delta_jars, tmp_path_factory):
    if SparkContext._active_spark_context is not None:
        pytest.skip("a session without Delta runs in this process; run `pytest tests/delta` on its own")
    session = (
        SparkSession.builder.master("local[2]")
        .appName("batch_infer delta tests")
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.sql.shuffle.partitions", "2")
        .config("spark.databricks.delta.snapshotPartitions", "2")
        .config("spark.sql.warehouse.dir", str(tmp_path_factory.mktemp("warehouse")))
        .config("spark.sql.session.timeZone", "UTC")
        .config("spark.driver.memory", "1g")
        # A short run is over before the second compiler pays.
        .config("spark.driver.extraJavaOptions", "-XX:+UseSerialGC -XX:TieredStopAtLevel=1")
        .config("spark.jars", delta_jars)
        .config("spark.sql.extensions", DELTA_EXTENSION)
        .config("spark.sql.catalog.spark_catalog", DELTA_CATALOG)
        .getOrCreate()
    )
    session.sparkContext.setLogLevel("ERROR")
    yield session
    session.stop()

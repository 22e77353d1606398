"""A further kind of table is one sink: written here in a few lines, and used by a job like the others."""

from __future__ import annotations

import pytest
from pyspark.sql import functions as F  # noqa: N812

import batch_infer as bi
from batch_infer.spark.tables.rules import Written
from batch_infer.spark.tables.sink import Sink
from batch_infer.spark.tables.sinks import SINKS

pytestmark = pytest.mark.spark


class OrcSink(Sink):
    """ORC files by Spark's own writer; without the guarantees of Parquet's sink."""

    name = "orc"

    def has_table(self, files, names, mode):
        return files.exists(f"{files.root}/_SUCCESS")

    def written(self, spark, files, names, mode):
        return None

    def existing_schema(self, spark, files):
        return spark.read.orc(files.root).schema

    def write(self, df, files, names, write):
        df.write.mode(write.mode).orc(files.root)
        return Written(df.sparkSession.read.orc(files.root).count(), files.root)


@pytest.fixture
def _orc(monkeypatch):
    monkeypatch.setitem(SINKS, "orc", OrcSink())


def test_a_job_writes_to_a_sink_that_was_added(spark, endpoint, tmp_path, _orc):
    bi.register_endpoint("to-orc", base_url=endpoint.base_url, model="m")
    frame = spark.range(5).select("id", F.concat(F.lit("row "), "id").alias("body"))
    out = str(tmp_path / "out")
    summary = bi.run(frame, endpoint="to-orc", request="body", output=out, format="orc", progress=False)
    assert (summary.rows, summary.failed) == (5, 0)
    assert spark.read.orc(out).where("result IS NOT NULL").count() == 5
    with pytest.raises(bi.ConfigError, match="there is a table at"):
        bi.run(frame, endpoint="to-orc", request="body", output=out, format="orc", progress=False)
    with pytest.raises(bi.ConfigError, match="which Orc cannot. Use format='delta'"):
        bi.run(frame, endpoint="to-orc", request="body", output=out, format="orc", mode="merge", merge_key=["id"])


def test_an_unknown_format_is_told_all_that_there_are(spark, tmp_path, _orc):
    with pytest.raises(bi.ConfigError, match=r"one of parquet, delta, orc; got 'ocr'\. Did you mean 'orc'\?"):
        bi.run(spark.range(1).select(F.lit("x").alias("b")), endpoint="local/chat", request="b",
               output=str(tmp_path / "o"), format="ocr")  # fmt: skip

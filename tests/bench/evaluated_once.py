"""Owns the table of calls: how often an endpoint is asked, for queries whose plans Spark likes to evaluate twice."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from typing import Any

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - Spark's own convention

import batch_infer as bi
from batch_infer.testing import FaultEndpoint
from tests.bench import report
from tests.bench.sessions import local_session, prompts

ROWS = 100


def ai() -> Column:
    return bi.ai_query("bench", "prompt", details=True)


def asked(spark: SparkSession, rows: int = ROWS, partitions: int = 2) -> DataFrame:
    return prompts(spark, rows, partitions).withColumn("r", ai())


def save(frame: DataFrame) -> None:
    frame.write.format("noop").mode("overwrite").save()


def view_used_twice(spark: SparkSession) -> None:
    frame = asked(spark).cache()
    frame.createOrReplaceTempView("answers")
    save(spark.sql("SELECT a.id, a.r.result, b.r.usage FROM answers a JOIN answers b ON a.id = b.id"))
    frame.unpersist()


def three_actions(spark: SparkSession) -> None:
    frame = asked(spark).cache()
    save(frame), frame.collect(), frame.select("r.usage").collect()
    frame.unpersist()


def self_union(spark: SparkSession) -> None:
    frame = asked(spark)
    save(frame.union(frame))


QUERIES: tuple[tuple[str, Callable[[SparkSession], Any]], ...] = (
    ("three fields of one struct", lambda s: save(asked(s).select("r.result", "r.usage", "r.cost_usd"))),
    ("all fields, r.*", lambda s: save(asked(s).select("id", "r.*"))),
    ("the same call written twice in a SELECT", lambda s: save(prompts(s, ROWS, 2).select(ai(), ai()))),
    ("filter on the result", lambda s: save(asked(s).filter("r.result IS NOT NULL").select("r.*"))),
    ("dropna on the result", lambda s: save(asked(s).dropna(subset=["r"]))),
    ("filter on another column, 10 rows kept", lambda s: save(asked(s).filter("id < 10"))),
    ("the filter first, 10 rows kept", lambda s: save(prompts(s, ROWS, 2).filter("id < 10").withColumn("r", ai()))),
    ("inner join that keeps 5 rows", lambda s: save(asked(s).join(s.range(5), "id"))),
    ("LIMIT 10 before, write", lambda s: save(prompts(s, 1000, 50).limit(10).withColumn("r", ai()))),
    ("LIMIT 10 after, write, 1,000 rows", lambda s: save(asked(s, 1000, 50).limit(10))),
    ("CASE WHEN id < 10", lambda s: save(prompts(s, ROWS, 2).select(F.when(F.col("id") < 10, ai()).alias("r")))),
    (
        "NULL request unless id < 10",
        lambda s: save(
            prompts(s, ROWS, 2).withColumn("prompt", F.when(F.col("id") < 10, F.col("prompt"))).select(ai())
        ),
    ),
    ("orderBy another column, after", lambda s: save(asked(s).orderBy(F.desc("id")))),
    ("self-union", self_union),
    ("count()", lambda s: asked(s).count()),
    ("cache(), then 3 actions", three_actions),
    ("a cached view used twice in one query", view_used_twice),
    ("checkpoint, then 1 action", lambda s: save(asked(s).localCheckpoint())),
    ("checkpoint(False), then 1 action", lambda s: save(asked(s).checkpoint(False))),
)


def measure(_options: argparse.Namespace) -> None:
    report.begin("evaluated_once", f"calls at the endpoint, {ROWS} distinct rows unless said otherwise")
    shown = []
    with tempfile.TemporaryDirectory() as scratch, FaultEndpoint() as endpoint:
        spark = local_session(scratch)
        spark.sparkContext.setCheckpointDir(f"{scratch}/checkpoints")
        bi.register_endpoint("bench", base_url=endpoint.base_url, model="m")
        for name, query in QUERIES:
            endpoint.reset()
            query(spark)
            calls = endpoint.calls_by_prompt()
            most = max(calls.values(), default=0)
            shown.append((name, sum(calls.values()), len(calls), most))
            report.result(
                "evaluated_once", query=name, calls=sum(calls.values()), distinct=len(calls), most_for_one=most
            )
        spark.stop()
    report.table(("query", "calls", "distinct requests", "most calls for one"), shown)

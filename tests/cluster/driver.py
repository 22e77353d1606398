"""A driver process: reads jobs from stdin, one line of JSON each, runs them, and answers each with a line of JSON.

python driver.py <master> <endpoint's URL> <JSON of fields: conf, endpoint>
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

from pyspark.sql import DataFrame, SparkSession

import batch_infer as bi

ANSWER = "@@"
QUIET = {
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.sql.shuffle.partitions": "2",
    "spark.driver.memory": "512m",
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
}


def rows_of(spark: SparkSession, job: dict) -> DataFrame:
    distinct = job.get("distinct", job["rows"])
    return spark.range(0, job["rows"], 1, job.get("parts", 4)).selectExpr(
        "id", f"concat('{job['word']} ', id % {distinct}) body"
    )


def run_job(spark: SparkSession, job: dict) -> dict:
    """The job form: `bi.run`."""
    summary = bi.run(rows_of(spark, job), endpoint="counted", prompt="{body}", progress=False, **job["options"])
    return asdict(summary)


def run_columns(spark: SparkSession, job: dict) -> dict:
    """Two column calls with a shuffle between them: the second stage asks `2: <prompt>` of each reply."""
    first = rows_of(spark, job).withColumn("first", bi.ai_query("counted", "body"))
    second = first.repartition(2, "id").selectExpr("*", "concat('2: ', first) next")
    second.withColumn("second", bi.ai_query("counted", "next")).write.parquet(job["columns_to"])
    return {}


ACTIONS = {
    "collect": lambda df: df.collect(),
    "count": lambda df: df.count(),
    "write": lambda df: df.write.format("noop").mode("overwrite").save(),
    "cache and 3 actions": lambda df: [
        act(df.cache()) for act in (DataFrame.collect, DataFrame.count, DataFrame.collect)
    ],
    "checkpoint": lambda df: df.checkpoint().collect(),
    "localCheckpoint": lambda df: df.localCheckpoint().collect(),
    "checkpoint(False)": lambda df: df.checkpoint(eager=False).collect(),
    "repartitionByRange": lambda df: df.repartitionByRange(2, "result").collect(),
}


def run_query(spark: SparkSession, job: dict) -> dict:
    """A query in SQL over the view `rows(id, body)`, on a ledger of its own."""
    spark.conf.set("spark.batch_infer.ledger", job["ledger"])
    spark.range(0, job["rows"], 1, job["parts"]).selectExpr("id", "concat('p ', id) body").createOrReplaceTempView(
        "rows"
    )
    call = "SELECT id, ai_query('counted', body, details => true) r FROM rows"
    spark.sql(call).createOrReplaceTempView("asked")
    ACTIONS[job["action"]](spark.sql(job["query"]))
    spark.catalog.clearCache()
    return {}


def main() -> None:
    """Runs until stdin ends."""
    master, url, fields = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    builder = SparkSession.builder.master(master).appName("batch_infer tests")
    for name, value in {**QUIET, **fields.get("conf", {})}.items():
        builder = builder.config(name, value)
    spark = builder.getOrCreate()
    spark.sparkContext.setLogLevel("OFF")
    spark.sparkContext.setCheckpointDir(fields["conf"]["spark.local.dir"] + "/checkpoints")
    bi.register(spark)
    bi.register_endpoint("counted", base_url=url, model="m", **fields.get("endpoint", {}))
    print(ANSWER + json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        try:
            run = run_query if "query" in job else run_columns if "columns_to" in job else run_job
            done = run(spark, job)
        except Exception as error:
            done = {"error": f"{type(error).__name__}: {error}"}
        print(ANSWER + json.dumps(done), flush=True)
    spark.stop()


if __name__ == "__main__":
    main()

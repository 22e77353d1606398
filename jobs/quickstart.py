"""What `make run` runs: 60 support tickets through the embedded models, classified and embedded, into Parquet."""

from __future__ import annotations

import sys
from pathlib import Path

from pyspark.sql import SparkSession
from pyspark.sql import functions as F  # noqa: N812 - Spark's own convention

import batch_infer as bi
from batch_infer.surface.progress import summary_lines

PROMPT = "Classify the sentiment of this message as positive or negative.\n\nMessage: {body}"
MOODS = {
    "type": "json_schema",
    "json_schema": {
        "name": "mood",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {"mood": {"enum": ["positive", "negative"]}},
            "required": ["mood"],
            "additionalProperties": False,
        },
    },
}
TICKETS = 60


def main(out: str) -> None:
    """Writes `<out>/classified` and `<out>/embedded`."""
    spark = SparkSession.builder.appName("batch_infer quickstart").getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    source = str(Path(__file__).parent.parent / "sample_data" / "tickets.parquet")
    tickets = spark.read.parquet(source).where(F.col("ticket_id") <= TICKETS).repartition(2, "ticket_id")
    classified, embedded = f"{out}/classified", f"{out}/embedded"

    print(f"\n1. Classifying {TICKETS} tickets by mood with 'local/chat' (a real model, but a tiny one: often wrong)")
    summary = bi.run(
        tickets,
        endpoint="local/chat",
        prompt=PROMPT,
        model_parameters={"max_tokens": 16, "temperature": 0.0, "seed": 1},
        response_format=MOODS,
        return_type="STRUCT<mood: STRING>",
        output=classified,
        mode="overwrite",
    )
    print("\n".join("   " + line for line in summary_lines(summary)))
    rows = spark.read.parquet(classified).orderBy("ticket_id")
    body = F.regexp_replace(F.substring("body", 1, 40), "\\s+", " ").alias("body")
    rows.select("ticket_id", "language", body, "result.mood", "usage.total_tokens", "from_ledger").show(8, 40)

    print("2. Embedding them with 'local/embed'")
    summary = bi.run(
        tickets, endpoint="local/embed", request="body", output=embedded, mode="overwrite", result_column="embedding"
    )
    print("\n".join("   " + line for line in summary_lines(summary)))
    vectors = spark.read.parquet(embedded).orderBy("ticket_id")
    vectors.select("ticket_id", F.size("embedding").alias("length"), F.slice("embedding", 1, 3).alias("begins")).show(
        3, 60
    )

    print("3. The same from SQL")
    bi.register(spark)
    rows.createOrReplaceTempView("tickets")
    query = (
        "SELECT ai_query('local/chat', 'Answer politely in one sentence: ' || body, "
        "modelParameters => named_struct('max_tokens', 24)) AS reply FROM tickets WHERE ticket_id = 1"
    )
    print(f"   {query}")
    spark.sql(query).show(truncate=100)
    print(
        "What next\n"
        f"  look at the tables   {classified}  {embedded}\n"
        "  run it again         make run: steps 1 and 2 find their replies in the ledger\n"
        "  your own data        . .venv/bin/activate; spark-submit jobs/ai_query.py --help\n"
        "  your own endpoint    batch_infer.register_endpoint('mine', base_url=…, model=…, api_key='env:MY_KEY')\n"
    )
    spark.stop()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "out")

"""What `make run` runs: support tickets through the embedded models; routed by language, searched, answered."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812 - Spark's own convention

import batch_infer as bi

TICKETS = str(Path(__file__).parent.parent / "sample_data" / "tickets.parquet")
NEIGHBOURS = 3
"""Labelled tickets that vote on the language of another one."""
QUESTION = "the parcel never arrived"
REPLY = "Thank the customer for this message in one short sentence: "


def main(out: str) -> None:
    """Writes `<out>/embedded` and `<out>/routed`."""
    spark = SparkSession.builder.appName("batch_infer quickstart").getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    bi.register(spark)
    tickets = spark.read.parquet(TICKETS).where("trim(body) != ''").repartition(2, "ticket_id")
    tickets.createOrReplaceTempView("tickets")

    print("\n1. A first answer, in SQL\n")
    spark.sql("SELECT round(ai_query('local/embed', 'Hello!')[0], 4) AS first_number_of_a_vector").show()

    print("2. Every ticket becomes a vector: a job, paid for once, into Parquet\n")
    embedded = f"{out}/embedded"
    summary = bi.run(
        tickets, endpoint="local/embed", request="body", output=embedded, mode="overwrite", result_column="embedding",
        progress=False,
    )  # fmt: skip
    print(f"   {summary.rows} rows, {summary.failed} failed, {summary.asked} asked now, {summary.from_ledger} free;")
    print(f"   {summary.prompt_tokens or 0:,} tokens, ${summary.cost_usd:.2f}, {summary.seconds:.1f} s\n")

    print("3. Each is routed to who speaks its language, by the nearest labelled tickets\n")
    routed, right = route(spark, spark.read.parquet(embedded))
    routed.write.mode("overwrite").parquet(f"{out}/routed")
    body = F.regexp_replace(F.substring("body", 1, 44), "\\s+", " ").alias("body")
    routed.where("ticket_id IN (1, 3, 6, 9, 14, 24)").orderBy("ticket_id").select(
        "ticket_id", body, "language", "routed_to"
    ).show(truncate=48)
    languages = routed.where("language IS NOT NULL").select("language").distinct().count()
    print(
        f"   right for {right:.1%} of all {routed.count()} tickets with text, {languages} languages; each was left out"
    )
    print("   of the tickets that voted on it\n")

    print(f"4. They can be searched: {QUESTION!r}\n")
    spark.read.parquet(embedded).createOrReplaceTempView("vectors")
    likeness = "aggregate(zip_with(embedding, q, (a, b) -> CAST(a * b AS DOUBLE)), 0D, (s, x) -> s + x)"
    found = spark.sql("SELECT *, ai_query('local/embed', :question) AS q FROM vectors", {"question": QUESTION})
    found.selectExpr(f"round({likeness}, 2) AS score", "ticket_id", "substring(body, 1, 60) AS body").orderBy(
        F.desc("score")
    ).limit(3).show(truncate=64)

    print("5. And a chat model answers. This one is tiny: it is there to try the calls, not for good answers\n")
    spark.sql(
        """
        SELECT ticket_id, ai_query('local/chat', :prompt || body,
                                   modelParameters => named_struct('max_tokens', 24, 'temperature', 0.0)) AS reply
        FROM tickets WHERE ticket_id IN (2, 4)
        """,
        {"prompt": REPLY},
    ).show(truncate=90)
    print(
        "What next\n"
        f"  look at the tables   {embedded}  {out}/routed\n"
        "  run it again         make run: what was answered is in the ledger, and free\n"
        "  your own data        . .venv/bin/activate; spark-submit jobs/ai_query.py --help\n"
        "  your own endpoint    batch_infer.register_endpoint('mine', base_url=…, model=…, api_key='env:MY_KEY')\n"
    )
    spark.stop()


def route(spark: SparkSession, embedded: DataFrame) -> tuple[DataFrame, float]:
    """The tickets with the language that their nearest neighbours have, and the part that is right."""
    rows = embedded.orderBy("ticket_id").select("ticket_id", "body", "language", "embedding").collect()
    vectors = np.array([row.embedding for row in rows])
    vectors -= vectors.mean(axis=0)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    alike = vectors @ vectors.T
    np.fill_diagonal(alike, -1.0)  # a ticket has no vote on itself
    routed = []
    for number, row in enumerate(rows):
        votes: dict[str | None, float] = {}
        for other in np.argsort(-alike[number])[:NEIGHBOURS]:
            votes[rows[other].language] = votes.get(rows[other].language, 0.0) + alike[number, other]
        routed.append((row.ticket_id, row.body, row.language, max(votes, key=lambda name: votes[name])))
    right = sum(language == chosen for _, _, language, chosen in routed) / len(routed)
    schema = "ticket_id BIGINT, body STRING, language STRING, routed_to STRING"
    return spark.createDataFrame(routed, schema), right


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "out")

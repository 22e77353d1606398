"""The public API as a typed program uses it. Never run: `mypy --strict` and pyright read it, and accept all but the
lines that say which error they expect."""

from __future__ import annotations

from dataclasses import dataclass

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812

import batch_infer as bi


@dataclass
class Topic:
    topic: str
    urgent: bool


def endpoints() -> bi.Endpoint:
    made = bi.register_endpoint(
        "mine",
        base_url="https://llm.example.com/v1",
        model="m",
        api_key="env:KEY",
        headers={"X-Team": "blue"},
        requests_per_minute=600,
        max_concurrency=8,
    )
    bi.register_endpoint("mine", request_per_minute=5)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    bi.register_endpoint("mine", task="chats")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    seconds: float = made.timeout_s
    assert seconds > 0
    return made


def columns(df: DataFrame) -> DataFrame:
    plain: Column = bi.ai_query("mine", "body")
    typed: Column = bi.ai_query("mine", F.col("body"), response_format=Topic, details=True, sample=F.col("id"))
    bi.ai_query("mine", "body", detail=True)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    bi.ai_query("mine", 7)  # type: ignore[arg-type, unused-ignore]  # pyright: ignore[reportArgumentType]
    return df.select(plain, typed, bi.is_normalized("embedding"))


def jobs(spark: SparkSession, df: DataFrame) -> float | None:
    names: list[str] = bi.register(spark, prefix="bi_")
    summary: bi.RunSummary = bi.run(
        df,
        endpoint="mine",
        prompt="Summarise: {body}",
        output="out",
        mode="overwrite",
        model_parameters={"max_tokens": 9},
    )
    bi.run(df, endpoint="mine", promt="x", output="out")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    bi.run(df, prompt="x", output="out", mode="replace")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    table: DataFrame = bi.inference_table(spark, "out.ledger")
    assert names
    assert table
    return summary.cost_usd


def errors(error: bi.EndpointError) -> str:
    ddl: str = bi.schema_to_ddl({"type": "object", "properties": {}})
    scope: str = error.scope
    return ddl + scope + error.kind

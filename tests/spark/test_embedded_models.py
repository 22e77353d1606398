"""The embedded default, for real: the source document's own statements, on real models."""

from __future__ import annotations

import math

import pytest
from pyspark.sql.types import ArrayType, FloatType, StringType

import batch_infer as bi
from tests.support.paths import SAMPLE_DATA

pytestmark = [pytest.mark.spark, pytest.mark.local_model]

TICKETS = str(SAMPLE_DATA / "tickets.parquet")


@pytest.fixture(scope="module")
def tickets(spark):
    rows = spark.read.parquet(TICKETS).where("ticket_id <= 12")
    rows.createOrReplaceTempView("tickets")
    return rows


def test_chat_with_double_quotes_gives_a_string(spark):
    answer = spark.sql('SELECT ai_query("local/chat", "Can you explain AI in ten words?")')
    assert answer.schema[0].dataType == StringType()
    assert answer.first()[0].strip()


def test_embedding_gives_384_floats_of_length_one(spark):
    answer = spark.sql("SELECT ai_query('local/embed', 'Embed this sentence!')")
    assert answer.schema[0].dataType == ArrayType(FloatType())
    vector = answer.first()[0]
    assert len(vector) == 384
    assert math.sqrt(sum(x * x for x in vector)) == pytest.approx(1, abs=1e-3)


STATEMENT = """ai_query('local/chat', request => body, failOnError => false,
    modelParameters => named_struct('max_tokens', 20, 'temperature', 0.0))"""


def test_the_documented_statement_over_a_table_in_every_form(spark, tickets):
    spark.sql(f"CREATE OR REPLACE TEMP VIEW answers AS SELECT ticket_id, body, {STATEMENT} r FROM tickets")
    forms = {
        "sql": spark.sql(f"SELECT ticket_id, body, {STATEMENT} r FROM tickets WHERE ticket_id <= 4"),
        "view": spark.sql("SELECT * FROM answers WHERE ticket_id <= 4"),
        "selectExpr": tickets.where("ticket_id <= 4").selectExpr("ticket_id", "body", f"{STATEMENT} r"),
        "column": tickets.where("ticket_id <= 4").select(
            "ticket_id",
            "body",
            bi.ai_query(
                "local/chat", "body", fail_on_error=False, model_parameters={"max_tokens": 20, "temperature": 0.0}
            ).alias("r"),
        ),
    }
    for form, df in forms.items():
        assert df.schema["r"].dataType.simpleString() == "struct<result:string,errorMessage:string>", form
    for row in forms["sql"].collect():
        assert (row.r is None) == (row.body is None)
        if row.r is not None:
            assert (row.r.result is None) != (row.r.errorMessage is None)
    assert forms["column"].count() == 4


def test_a_null_request_is_null_and_costs_no_start(spark, tickets):
    nulls = spark.sql(f"SELECT {STATEMENT} r FROM tickets WHERE body IS NULL").collect()
    assert nulls
    assert all(row.r is None for row in nulls)


def test_every_sample_ticket_has_an_embedding_where_it_has_text(spark):
    rows = (
        spark.read.parquet(TICKETS)
        .select("body", bi.ai_query("local/embed", "body", details=True).alias("r"))
        .collect()
    )
    assert len(rows) == 264
    for row in rows:
        assert (row.r is None) == (row.body is None)
        if row.r is not None:
            assert row.r.error is None
            assert len(row.r.result) == 384

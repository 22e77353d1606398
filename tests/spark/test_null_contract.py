"""NULL in, NULL out, without a call; every row in its place; never a row with neither a result nor an error."""

import pytest
from chispa import assert_df_equality

import batch_infer as bi
from batch_infer.testing import Rule

pytestmark = pytest.mark.usefixtures("no_ledger")

SHAPES = ["", ", failOnError => false", ", details => true"]


@pytest.mark.parametrize("shape", SHAPES, ids=["plain", "with_error", "details"])
def test_a_null_request_is_a_null_and_not_a_struct_of_nulls(spark, endpoint, prompts, shape):
    rows = spark.sql(f"SELECT id, body, ai_query('echo', body{shape}) r FROM prompts").collect()
    assert [row.id for row in rows if row.r is None] == [3, 17]
    assert endpoint.stats()["requests"] == 18


@pytest.mark.parametrize("shape", SHAPES, ids=["plain", "with_error", "details"])
def test_only_nulls_are_no_calls(spark, endpoint, shape):
    df = spark.sql(f"SELECT ai_query('echo', cast(null AS STRING){shape}) r FROM range(5)")
    assert [row.r for row in df.collect()] == [None] * 5
    assert [row.r for row in spark.sql(f"SELECT ai_query('echo', NULL{shape}) r").collect()] == [None]
    assert endpoint.stats()["requests"] == 0


def test_a_null_vector_and_null_messages(spark, endpoint):
    rows = spark.sql("SELECT ai_query('vectors', if(id = 1, null, 'x')) r FROM range(3)").collect()
    assert [row.r is None for row in rows] == [False, True, False]
    messages = "if(id = 1, null, array(named_struct('role', 'user', 'content', 'x')))"
    rows = spark.sql(f"SELECT ai_query('echo', {messages}) r FROM range(3)").collect()
    assert [row.r for row in rows] == ["echo: x", None, "echo: x"]


def test_a_null_request_is_null_in_a_column_too(spark, endpoint, prompts):
    df = spark.table("prompts")
    for options in ({}, {"fail_on_error": False}, {"details": True}):
        rows = df.withColumn("r", bi.ai_query("echo", "body", **options)).collect()
        assert [row.id for row in rows if row.r is None] == [3, 17]


def test_an_empty_prompt_is_asked(spark, endpoint):
    assert spark.sql("SELECT ai_query('echo', '') r").first().r == "echo: "
    assert endpoint.stats()["requests"] == 1


@pytest.mark.parametrize("name", ["echo", "vectors"])
def test_order_and_nulls_are_kept_over_batches_and_partitions(spark, start_endpoint, name):
    slow_ones = [Rule(regex=r"^p \d*[05]$", latency_s=0.1)]
    task = "chat" if name == "echo" else "embeddings"
    endpoint = start_endpoint("uneven", rules=slow_ones, fields={"task": task})
    rows = [(i, None if i % 7 == 3 else f"p {i}") for i in range(1500)]
    df = spark.createDataFrame(rows, "id INT, body STRING").coalesce(1).repartitionByRange(2, "id")
    asked = df.sortWithinPartitions("id").withColumn("r", bi.ai_query("uneven", "body")).localCheckpoint()
    found = asked.collect()
    assert [(row.id, row.body) for row in found] == rows
    assert [row.r is None for row in found] == [body is None for _, body in rows]
    if name == "echo":
        expected = spark.createDataFrame(
            [(i, body, None if body is None else f"echo: {body}") for i, body in rows], "id INT, body STRING, r STRING"
        )
        assert_df_equality(asked, expected)
    assert endpoint.stats()["rows"] == sum(body is not None for _, body in rows)


@pytest.mark.parametrize("fault", ["null_content", "empty_choices", "content_filter"])
def test_an_empty_reply_is_an_error_and_never_two_nulls(spark, start_endpoint, fault):
    start_endpoint("empty", rules=[Rule(fault=fault)])
    row = spark.sql("SELECT ai_query('empty', 'x', failOnError => false) r").first().r
    assert row.result is None
    assert row.errorMessage
    details = spark.sql("SELECT ai_query('empty', 'x', details => true) r").first().r
    assert details.result is None
    assert details.error.kind == ("content_filter" if fault == "content_filter" else "empty_reply")


@pytest.mark.parametrize("text", ["null", " null\n", "```json\nnull\n```"])
def test_a_typed_reply_of_null_is_an_error_and_never_two_nulls(spark, start_endpoint, text):
    start_endpoint("nulls", rules=[Rule(text=text)])
    row = spark.sql("SELECT ai_query('nulls', 'x', returnType => 'INT', failOnError => false) r").first().r
    assert row.result is None
    assert "null" in row.errorMessage


def test_an_empty_input_gives_an_empty_column_of_the_right_type(spark, endpoint):
    for shape in SHAPES:
        df = spark.sql(f"SELECT ai_query('echo', string(id){shape}) r FROM range(0)")
        assert df.collect() == []
    assert endpoint.stats()["requests"] == 0

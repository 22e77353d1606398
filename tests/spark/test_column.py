"""`ai_query` as a Python function: the same answers, types and refusals as in SQL."""

import pytest
from pyspark.sql import functions as F  # noqa: N812
from pyspark.sql.types import ArrayType, DoubleType, IntegerType, StructField, StructType

import batch_infer as bi
from batch_infer.testing import Rule

pytestmark = pytest.mark.usefixtures("no_ledger")


def test_a_column_by_name_and_by_expression(spark, endpoint, prompts):
    df = spark.table("prompts")
    rows = df.select("id", bi.ai_query("echo", "body").alias("r")).orderBy("id")
    by_name = {row.id: row.r for row in df.select("id", bi.ai_query("echo", "body").alias("r")).collect()}
    by_expression = {row.id: row.r for row in df.select("id", bi.ai_query("echo", F.col("body")).alias("r")).collect()}
    assert by_name == by_expression == {i: None if i in (3, 17) else f"echo: prompt {i:02}" for i in range(20)}
    assert rows.schema["r"].dataType.simpleString() == "string"
    assert endpoint.stats()["requests"] == 36


def test_nothing_is_sent_before_an_action(spark, endpoint, prompts):
    spark.table("prompts").withColumn("r", bi.ai_query("echo", "body")).schema  # noqa: B018
    assert endpoint.stats()["requests"] == 0


def test_the_types_are_those_of_sql(spark, endpoint):
    df = spark.range(1).withColumn("body", F.lit("x"))

    def kind(*args, **options):
        return df.select(bi.ai_query(*args, **options).alias("r")).schema["r"].dataType.simpleString()

    assert kind("echo", "body") == "string"
    assert kind("vectors", "body") == "array<float>"
    assert kind("vectors", "body", return_type=ArrayType(DoubleType())) == "array<double>"
    assert kind("echo", "body", fail_on_error=False) == "struct<result:string,errorMessage:string>"
    assert kind("echo", "body", details=True).startswith("struct<result:string,error:struct<kind:string,status:int")
    in_sql = spark.sql("SELECT ai_query('echo', 'x', details => true) r").schema["r"].dataType
    assert kind("echo", "body", details=True) == in_sql.simpleString()
    assert kind("echo", "body", return_type="STRUCT<a: INT>") == "struct<a:int>"
    assert kind("echo", "body", return_type=StructType([StructField("a b", IntegerType(), False)])) == "struct<a b:int>"


def test_parameters_and_formats_reach_the_endpoint(spark, endpoint):
    column = bi.ai_query(
        "echo",
        F.lit("x"),
        model_parameters={"max_tokens": 9, "temperature": 0.5, "stop": ["a"]},
        response_format={"type": "json_object"},
    )
    assert spark.range(1).select(column.alias("r")).first().r == '{"echo":"echo: x"}'
    (body,) = endpoint.bodies()
    assert (body["max_tokens"], body["temperature"], body["stop"]) == (9, 0.5, ["a"])
    assert body["response_format"] == {"type": "json_object"}


def test_a_column_over_a_column_asks_each_once(spark, endpoint, prompts):
    df = spark.table("prompts")
    inner = bi.ai_query("echo", "body")
    assert df.select(bi.ai_query("echo", inner).alias("r")).where("r LIKE 'echo: echo: %'").count() == 18
    assert endpoint.stats()["requests"] == 36


def test_fail_on_error_false_gives_the_neighbours_their_answers(spark, start_endpoint, prompts):
    start_endpoint("picky", rules=[Rule("prompt 05", status=400, error={"message": "Bad row."})])
    df = spark.table("prompts").withColumn("r", bi.ai_query("picky", "body", fail_on_error=False))
    rows = {row.id: row.r for row in df.collect() if row.r is not None}
    assert [i for i, r in rows.items() if r.result is None] == [5]
    assert "Bad row." in rows[5].errorMessage


def test_python_and_sql_give_the_same_request_key(spark, endpoint):
    in_sql = (
        "ai_query('echo', 'x', details => true, modelParameters => named_struct('max_tokens', 5, 'temperature', 0.0))"
    )
    column = bi.ai_query("echo", F.lit("x"), details=True, model_parameters={"temperature": 0.0, "max_tokens": 5})
    keys = [spark.sql(f"SELECT {in_sql}.request_key k").first().k]
    keys.append(spark.range(1).select(column.getField("request_key").alias("k")).first().k)
    assert keys[0] == keys[1]


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        (("ecco", "body"), {}, "Did you mean 'echo'?"),
        ((None, "body"), {}, "no endpoint is named"),
        ((F.col, "body"), {}, "the endpoint is the name of one, as text"),
        (("echo", "body"), {"return_type": "STRUKT<a: INT>"}, "returnType: 'STRUKT<a: INT>' is not a type"),
        (("echo", "body"), {"return_type": "BINARY"}, "'binary' cannot be read from a reply"),
        (("echo", "body"), {"model_parameters": {"max_tokens": 0}}, "'max_tokens' is a whole number"),
        (("echo", "body"), {"response_format": "xml"}, "responseFormat: 'xml' is neither JSON nor a type"),
        (("vectors", "body"), {"response_format": {"type": "text"}}, "only chat endpoints take it"),
        (("vectors", "body"), {"files": "body"}, "files can only go to a chat endpoint"),
        (("vectors", "body"), {"return_type": "STRING"}, "ARRAY<FLOAT>"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused_at_once(spark, endpoint, arguments, options, words):
    with pytest.raises(bi.ConfigError) as refused:
        bi.ai_query(*arguments, **options)
    assert words in str(refused.value)
    assert endpoint.stats()["requests"] == 0


def test_a_column_as_the_endpoint_is_refused_in_plain_words(spark, endpoint):
    with pytest.raises(bi.ConfigError, match="the name of one, as text; got Column"):
        bi.ai_query(F.col("name"), "body")


def test_an_unknown_argument_is_refused(spark, endpoint):
    with pytest.raises(TypeError, match="temperature"):
        bi.ai_query("echo", "body", temperature=0)

"""SQL functions as records: one is added in a few lines, and its name is in every message and plan."""

from __future__ import annotations

import dataclasses

import pytest
from pyspark.sql import functions as F  # noqa: N812

import batch_infer as bi
from batch_infer.contract.options import CallOptions
from batch_infer.spark.functions import registry
from batch_infer.spark.functions.ai_query import asked
from batch_infer.spark.functions.record import SqlCall, SqlFunction

pytestmark = pytest.mark.spark


def _shout(call: SqlCall):
    options = CallOptions(
        endpoint=call.constants.get("endpoint"),
        request=call.columns["content"],
        model_parameters={"max_tokens": 3},
    )
    return asked(call, options)


AI_SHOUT = SqlFunction(
    name="ai_shout",
    arguments={"content": "column", "endpoint": "text"},
    build=_shout,
    required=("content",),
    usage="{name}(content[, endpoint])",
)


@pytest.fixture
def shouting(spark, monkeypatch):
    monkeypatch.setattr(registry, "FUNCTIONS", [*registry.FUNCTIONS, AI_SHOUT])
    assert "my_ai_shout" in bi.register(spark, prefix="my_")


def test_a_function_is_one_record(spark, shouting, endpoint):
    bi.register_endpoint("shouting", base_url=endpoint.base_url, model="m")
    rows = spark.sql("SELECT my_ai_shout('hello', endpoint => 'shouting') AS said, my_ai_shout(NULL, 'shouting') none")
    (row,) = rows.collect()
    assert row.said
    assert row.none is None


@pytest.mark.parametrize(
    ("call", "told"),
    [
        ("my_ai_shout('a', 'no-such')", "there is no endpoint 'no-such'"),
        ("my_ai_shout('a', 7)", "my_ai_shout: the argument 'endpoint' is a STRING; got 7"),
        ("my_ai_shout(contents => 'a')", "my_ai_shout: there is no argument 'contents'. Did you mean 'content'?"),
        ("my_ai_shout(endpoint => 'e')", "the argument 'content' is missing. Write my_ai_shout(content[, endpoint])"),
        ("my_ai_shout(array(1), 'local/chat')", "my_ai_shout: the request is ARRAY<INT>"),
        ("my_ai_query('local/chat', array(1))", "my_ai_query: the request is ARRAY<INT>"),
        ("my_ai_query('a')", "my_ai_query: the argument 'request' is missing. Write my_ai_query(endpoint, request, …)"),
    ],
)
def test_the_functions_own_name_is_in_every_message(spark, shouting, call, told):
    with pytest.raises(Exception, match="SELECT|my_|endpoint") as refused:
        spark.sql(f"SELECT {call}")
    assert told in str(refused.value)


@dataclasses.dataclass
class Topic:
    topic: str
    urgent: bool


def test_a_format_that_is_a_type_types_the_column_in_python_and_stays_text_in_sql(spark, endpoint):
    bi.register_endpoint("typing", base_url=endpoint.base_url, model="m")
    frame = spark.range(1).select(F.lit("hello").alias("body"))
    for given in ("STRUCT<topic: STRING, urgent: BOOLEAN>", Topic):
        column = bi.ai_query("typing", "body", response_format=given)
        kind = frame.select(column.alias("r")).schema["r"].dataType.simpleString()
        assert kind == "struct<topic:string,urgent:boolean>"
    bi.register(spark)
    sql = spark.sql("SELECT ai_query('typing', 'hello', responseFormat => 'STRUCT<topic: STRING>') AS r")
    assert sql.schema["r"].dataType.simpleString() == "string"


def test_a_text_that_is_no_columns_name_says_how_to_write_a_constant(spark):
    with pytest.raises(bi.ConfigError, match=r"F\.lit\('Hello, world!'\)"):
        bi.ai_query("local/chat", "Hello, world!")


def test_a_job_says_the_same_of_an_unknown_column_and_names_the_nearest(spark, tmp_path):
    frame = spark.range(1).select(F.lit("x").alias("body"))
    with pytest.raises(bi.ConfigError, match=r"'body'.*request=F\.lit\('bodi'\)"):
        bi.run(frame, endpoint="local/chat", request="bodi", output=str(tmp_path / "out"))

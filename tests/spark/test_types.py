"""The type and the values of every form of `ai_query`."""

from decimal import Decimal

import pytest
from pyspark.sql.types import _parse_datatype_string

import batch_infer as bi
from batch_infer.testing import Rule, chat_text, embedding

pytestmark = pytest.mark.usefixtures("no_ledger")

DETAILS = """STRUCT<
    result: STRING,
    error: STRUCT<kind: STRING, status: INT, message: STRING, retryable: BOOLEAN>,
    usage: STRUCT<prompt_tokens: BIGINT, completion_tokens: BIGINT, total_tokens: BIGINT, cached_tokens: BIGINT,
                  reasoning_tokens: BIGINT>,
    cost_usd: DOUBLE,
    finish_reason: STRING,
    reasoning: STRING,
    tool_calls: ARRAY<STRUCT<id: STRING, name: STRING, arguments: STRING>>,
    choices: ARRAY<STRING>,
    message: STRING,
    model: STRING,
    attempts: INT,
    latency_ms: BIGINT,
    request_key: STRING,
    from_ledger: BOOLEAN>"""


def one(spark, call):
    """The type of an expression over one row, and its value."""
    df = spark.sql(f"SELECT {call} AS r")
    return df.schema["r"].dataType.simpleString(), df.first().r


def test_a_chat_reply_is_a_string(spark, endpoint):
    assert one(spark, "ai_query('echo', 'hello')") == ("string", "echo: hello")


def test_an_embedding_is_an_array_of_floats(spark, endpoint):
    kind, value = one(spark, "ai_query('vectors', 'hello')")
    assert kind == "array<float>"
    assert value == pytest.approx(embedding("hello"), rel=1e-6)


def test_an_embedding_can_be_an_array_of_doubles(spark, endpoint):
    kind, value = one(spark, "ai_query('vectors', 'hello', returnType => 'ARRAY<DOUBLE>')")
    assert kind == "array<double>"
    assert value == pytest.approx(embedding("hello"), rel=1e-12)


def test_fail_on_error_false_is_a_struct_of_result_and_message(spark, endpoint):
    kind, value = one(spark, "ai_query('echo', 'hello', failOnError => false)")
    assert kind == "struct<result:string,errorMessage:string>"
    assert (value.result, value.errorMessage) == ("echo: hello", None)


def test_details_are_the_whole_row_contract(spark, endpoint):
    kind, value = one(spark, "ai_query('echo', 'two words', details => true)")
    assert kind == _parse_datatype_string(DETAILS).simpleString()
    assert value.asDict(recursive=True) == {
        "result": "echo: two words",
        "error": None,
        "usage": {
            "prompt_tokens": 2,
            "completion_tokens": 3,
            "total_tokens": 5,
            "cached_tokens": None,
            "reasoning_tokens": None,
        },
        "cost_usd": None,
        "finish_reason": "stop",
        "reasoning": None,
        "tool_calls": None,
        "choices": None,
        "message": '{"role":"assistant","content":"echo: two words"}',
        "model": "m",
        "attempts": 1,
        "latency_ms": value.latency_ms,
        "request_key": value.request_key,
        "from_ledger": False,
    }
    assert len(value.request_key) == 32


def test_details_of_embeddings_hold_the_vector(spark, endpoint):
    kind, value = one(spark, "ai_query('vectors', 'hello', details => true)")
    assert kind.startswith("struct<result:array<float>,error:struct<")
    assert "choices:array<array<float>>" in kind
    assert len(value.result) == 16
    assert value.usage.prompt_tokens == 1


@pytest.mark.parametrize(
    ("ddl", "text", "kind", "value"),
    [
        ("INT", "42", "int", 42),
        ("BIGINT", "42", "bigint", 42),
        ("BOOLEAN", "true", "boolean", True),
        ("DOUBLE", "1.5", "double", 1.5),
        ("DECIMAL(30,4)", "12345678901234567890.25", "decimal(30,4)", Decimal("12345678901234567890.2500")),
        ("ARRAY<INT>", "[1, 2]", "array<int>", [1, 2]),
        ("MAP<STRING, INT>", '{"a": 1}', "map<string,int>", {"a": 1}),
        ("STRUCT<a: INT, b: ARRAY<STRING>>", '{"a":1,"b":["x"]}', "struct<a:int,b:array<string>>", (1, ["x"])),
        ("STRUCT<`first name`: STRING NOT NULL>", '{"first name":"Ann"}', "struct<first name:string>", ("Ann",)),
        ("ARRAY<STRUCT<x: DOUBLE>>", 'Sure: ```json\n[{"x": 1}]\n```', "array<struct<x:double>>", [(1.0,)]),
    ],
)
def test_return_type_is_the_type_of_the_result(spark, start_endpoint, ddl, text, kind, value):  # noqa: PLR0917
    start_endpoint("typed", rules=[Rule(text=text)])
    assert one(spark, f"ai_query('typed', 'x', returnType => '{ddl}')") == (kind, value)
    found, result = one(spark, f"ai_query('typed', 'x', returnType => '{ddl}', details => true)")
    assert found.startswith(f"struct<result:{kind},error:")
    assert result.result == value


def test_a_reply_of_another_type_is_that_rows_error(spark, endpoint):
    value = one(spark, "ai_query('echo', 'x', returnType => 'INT', failOnError => false)")[1]
    assert value.result is None
    assert "is not of the form asked for" in value.errorMessage


def test_a_response_format_without_a_return_type_stays_json_text(spark, endpoint):
    kind, value = one(spark, "ai_query('echo', 'x', responseFormat => '{\"type\":\"json_object\"}')")
    assert (kind, value) == ("string", '{"echo":"echo: x"}')


def test_a_response_format_as_ddl_becomes_a_strict_schema(spark, endpoint):
    kind, value = one(
        spark, "ai_query('echo', 'x', responseFormat => 'STRUCT<person: STRUCT<name: STRING, age: INT>>')"
    )
    assert (kind, value) == ("string", '{"name":"echo: x","age":1}')
    (body,) = endpoint.bodies()
    assert body["response_format"] == {
        "type": "json_schema",
        "json_schema": {
            "name": "person",
            "strict": True,
            "schema": {
                "type": "object",
                "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
                "required": ["name", "age"],
                "additionalProperties": False,
            },
        },
    }


def test_a_response_format_and_a_return_type_give_a_struct(spark, endpoint):
    call = "ai_query('echo', 'x', responseFormat => 'STRUCT<n: INT>', returnType => 'STRUCT<n: INT>').n"
    assert one(spark, call) == ("int", 1)


def test_all_choices_are_in_the_details(spark, endpoint):
    value = one(spark, "ai_query('echo', 'x', modelParameters => named_struct('n', 3), details => true)")[1]
    assert value.choices == ["echo: x"] * 3
    assert value.result == "echo: x"


def test_a_price_makes_a_cost(spark, endpoint):
    bi.register_endpoint(
        "priced",
        base_url=endpoint.base_url,
        model="m",
        usd_per_million_prompt_tokens=1,
        usd_per_million_completion_tokens=10,
    )
    assert one(spark, "ai_query('priced', 'a b', details => true)")[1].cost_usd == pytest.approx(32e-6)


def test_a_completions_endpoint(spark, endpoint):
    bi.register_endpoint("text", base_url=endpoint.base_url, model="m", task="completions")
    assert one(spark, "ai_query('text', 'x')") == ("string", chat_text("x"))
    assert endpoint.bodies() == [{"model": "m", "prompt": "x"}]


CASES = [
    ("'echo', 'x'", ("string", "echo: x")),
    ("'echo', if(rand() < 2, null, 'x')", ("string", None)),
    ("'echo', 'x', failOnError => false", ("struct<result:string,errorMessage:string>", ("echo: x", None))),
    ("'echo', string(null), failOnError => false", ("struct<result:string,errorMessage:string>", None)),
    ("'echo', '1', returnType => 'STRUCT<a: INT>', responseFormat => 'STRUCT<a: INT>'", ("struct<a:int>", (1,))),
]


def test_maps_inside_go_through_pandas(spark, start_endpoint, monkeypatch):
    from batch_infer.spark import udf

    monkeypatch.setattr(udf, "HAS_ARROW_UDF", False)
    start_endpoint("maps", rules=[Rule(text='{"m": {"a": 1.25}, "l": [{"b": 2}, null]}')])
    kind = "STRUCT<m: MAP<STRING, DECIMAL(5,2)>, l: ARRAY<MAP<STRING, INT>>>"
    row = spark.sql(f"SELECT ai_query('maps', 'x', returnType => '{kind}') r").first().r
    assert (row.m, row.l) == ({"a": Decimal("1.25")}, [{"b": 2}, None])


@pytest.mark.parametrize(("arguments", "expected"), CASES)
def test_sparks_before_4_1_give_the_same_through_pandas(spark, endpoint, monkeypatch, arguments, expected):
    from batch_infer.spark import udf

    monkeypatch.setattr(udf, "HAS_ARROW_UDF", False)
    assert one(spark, f"ai_query({arguments})") == expected


def test_pandas_carries_details_files_and_messages(spark, endpoint, monkeypatch):
    from batch_infer.spark import udf

    monkeypatch.setattr(udf, "HAS_ARROW_UDF", False)
    call = "ai_query('echo', array(named_struct('role', 'user', 'content', 'x')), details => true, files => X'00')"
    kind, value = one(spark, call)
    assert kind == _parse_datatype_string(DETAILS).simpleString()
    assert (value.result, value.error, value.usage.total_tokens) == ("echo: x", None, 3)
    assert endpoint.bodies()[0]["messages"][0]["content"][1]["type"] == "image_url"
    assert one(spark, "ai_query('vectors', 'hello')")[1] == pytest.approx(embedding("hello"), rel=1e-6)

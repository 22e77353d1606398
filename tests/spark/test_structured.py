"""Structured outputs through Spark: typed columns, repair of wrong replies, packed embeddings with one bad text."""

import datetime as dt
import json

import pytest

import batch_infer as bi
from batch_infer.testing import Rule

pytestmark = pytest.mark.usefixtures("no_ledger")

USAGE = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}


def says(text, **fields):
    """A chat reply's whole body."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop", **fields}
    return json.dumps({"model": "m", "choices": [choice], "usage": USAGE})


def one(spark, call):
    """The type of an expression over one row, and its value."""
    df = spark.sql(f"SELECT {call} AS r")
    return df.schema["r"].dataType.simpleString(), df.first().r


MENDED = "echo: Your reply is not what was asked for:\n- "
"""The endpoint echoes what it was told last."""
NESTED = "STRUCT<label: STRING, lines: ARRAY<STRUCT<sku: STRING, count: INT>>, `first name`: STRING>"


def test_replies_that_are_broken_once_are_mended_and_every_attempt_is_billed(spark, start_endpoint):
    rules = [Rule(regex="^row ", fraction=0.3, per_prompt_times=1, body=says('{"label": "cut o'))]
    endpoint = start_endpoint("faulty", rules=rules)
    df = spark.range(200).selectExpr("id", "concat('row ', id) AS body")
    call = bi.ai_query("faulty", "body", response_format=NESTED, return_type=NESTED, details=True)
    rows = df.select("id", call.alias("r")).collect()
    assert {row.id for row in rows} == set(range(200))
    assert all(row.r.error is None for row in rows)
    for row in rows:
        assert row.r.result.label == (MENDED if row.r.attempts > 1 else f"echo: row {row.id}")
    assert {row.r.result.lines[0].asDict()["count"] for row in rows} == {1}
    mended = [row.r for row in rows if row.r.attempts > 1]
    assert 30 <= len(mended) <= 90
    assert {r.attempts for r in mended} == {2}
    stats = endpoint.stats()
    assert stats["requests"] == 200 + len(mended) == sum(row.r.attempts for row in rows)
    # Scripted bodies bring their own usage; the endpoint counts the others.
    assert sum(row.r.usage.prompt_tokens for row in rows) == stats["prompt_tokens"] + 5 * len(mended)
    assert sum(row.r.usage.completion_tokens for row in rows) == stats["completion_tokens"] + 7 * len(mended)


def test_the_model_is_told_what_is_wrong_in_the_same_conversation(spark, start_endpoint):
    endpoint = start_endpoint("faulty", rules=[Rule(match="who", body=says('{"name": 3}'))])
    call = "ai_query('faulty', 'who?', responseFormat => 'STRUCT<name: STRING, age: INT>', details => true)"
    assert one(spark, call)[1].error is None
    first, second = endpoint.bodies()
    assert second["messages"][:2] == [*first["messages"], {"role": "assistant", "content": '{"name": 3}'}]
    told = second["messages"][2]["content"]
    assert "- reply lacks 'age'\n- reply.name is a number, not a string\n" in told
    assert {**first, "messages": 0} == {**second, "messages": 0}


def test_a_reply_that_stays_wrong_is_reported_after_the_bound_with_its_text_in_message(spark, start_endpoint):
    endpoint = start_endpoint("stubborn", rules=[Rule(body=says("I had rather not."))])
    arguments = "'stubborn', 'x', responseFormat => '{\"type\":\"json_object\"}'"
    row = one(spark, f"ai_query({arguments}, details => true)")[1]
    assert (row.result, row.choices, row.attempts) == (None, None, 3)
    assert (row.error.kind, row.error.status, row.error.retryable) == ("type_mismatch", 200, False)
    assert "is not of the form asked for: the reply holds no JSON" in row.error.message
    assert json.loads(row.message)["content"] == "I had rather not."
    assert (row.finish_reason, row.model, row.usage.total_tokens) == ("stop", "m", 36)
    assert endpoint.stats()["requests"] == 3
    value = one(spark, f"ai_query({arguments}, failOnError => false)")[1]
    assert value.result is None
    assert "holds no JSON" in value.errorMessage
    with pytest.raises(Exception, match="holds no JSON"):
        spark.sql(f"SELECT ai_query({arguments})").collect()


def test_max_repairs_of_the_endpoint_is_the_bound(spark, start_endpoint):
    endpoint = start_endpoint("once", fields={"max_repairs": 0}, rules=[Rule(body=says("no"))])
    value = one(spark, "ai_query('once', 'x', returnType => 'STRUCT<a: INT>', details => true)")[1]
    assert (value.attempts, endpoint.stats()["requests"]) == (1, 1)
    assert "add responseFormat => 'STRUCT<`a`: INT>'" in value.error.message


def test_a_job_mends_and_keeps_what_could_not_be(spark, start_endpoint, tmp_path):
    rules = [
        Rule(regex="^row 1$", per_prompt_times=1, body=says("not yet")),
        Rule(regex="^row 2$", body=says("cut o", finish_reason="length")),
    ]
    endpoint = start_endpoint("jobs", rules=rules)
    df = spark.range(4).selectExpr("id", "concat('row ', id) AS body")
    output, ledger, kind = str(tmp_path / "out"), str(tmp_path / "ledger"), "STRUCT<text: STRING>"
    summary = bi.run(
        df, endpoint="jobs", prompt="{body}", output=output, ledger=ledger, progress=False,
        response_format=kind, return_type=kind,
    )  # fmt: skip
    assert (summary.succeeded, summary.failed, summary.errors, summary.attempts) == (3, 1, {"type_mismatch": 1}, 5)
    assert endpoint.stats()["requests"] == 5  # what was cut off is not asked for again
    rows = {row.id: row for row in spark.read.parquet(str(tmp_path / "out")).collect()}
    assert [rows[i].result and rows[i].result.text for i in range(4)] == ["echo: row 0", MENDED, None, "echo: row 3"]
    assert "raise max_tokens" in rows[2].error.message
    assert json.loads(rows[2].message)["content"] == "cut o"
    assert rows[1].usage.total_tokens > 12


SCHEMA = {
    "type": "object",
    "properties": {"label": {"enum": ["good", "bad"]}, "score": {"type": "number", "minimum": 2}},
    "required": ["label", "score"],
    "additionalProperties": False,
}
FORM = json.dumps({"type": "json_schema", "json_schema": {"name": "r", "schema": SCHEMA, "strict": True}})


def test_a_json_schema_is_honoured_in_full(spark, start_endpoint):
    rules = [Rule(match="good", body=says('```json\n{"label": "good", "score": 2.5}\n```'))]
    endpoint = start_endpoint("schema", rules=rules)
    call = f"ai_query('schema', 'good?', responseFormat => '{FORM}'"
    assert one(spark, f"{call})")[1] == '{"label": "good", "score": 2.5}'
    kind, value = one(spark, f"{call}, returnType => 'STRUCT<label: STRING, score: DOUBLE>')")
    assert (kind, tuple(value)) == ("struct<label:string,score:double>", ("good", 2.5))
    assert endpoint.bodies()[0]["response_format"] == json.loads(FORM)
    # The endpoint's own replies to this schema have the score 1.5.
    row = one(spark, f"ai_query('schema', 'x', responseFormat => '{FORM}', details => true)")[1]
    assert "reply.score: 1.5 is less than the minimum of 2" in row.error.message
    assert row.attempts == 3


@pytest.mark.parametrize(
    ("ddl", "kind", "value"),
    [
        ("ARRAY<STRUCT<a: STRING, n: INT>>", "array<struct<a:string,n:int>>", [("echo: x", 1)]),
        ("ARRAY<STRING>", "array<string>", ["echo: x"]),
        ("INT", "int", 1),
        ("BOOLEAN", "boolean", True),
        ("STRUCT<person: STRUCT<name: STRING>>", "struct<person:struct<name:string>>", (("echo: x",),)),
    ],
)
def test_one_type_for_the_format_and_the_column_of_any_form(spark, endpoint, ddl, kind, value):
    call = f"ai_query('echo', 'x', responseFormat => '{ddl}', returnType => '{ddl}'"
    assert one(spark, f"{call})") == (kind, value)
    (body,) = endpoint.bodies()
    form = body["response_format"]["json_schema"]
    assert (form["schema"]["type"], form["strict"]) == ("object", True)
    found, row = one(spark, f"{call}, details => true)")
    assert found.startswith(f"struct<result:{kind},")
    assert row.result == value


def test_a_wrapped_array_without_a_return_type_is_its_json_alone(spark, endpoint):
    assert one(spark, "ai_query('echo', 'x', responseFormat => 'ARRAY<INT>')") == ("string", "[1]")


MOMENTS = '{"day": "2026-01-31", "at": "2026-01-31T12:00:00+02:00"}'


@pytest.mark.parametrize("has_arrow_udf", [True, False])
def test_dates_and_timestamps(spark, start_endpoint, monkeypatch, has_arrow_udf):
    from batch_infer.spark import udf

    if not has_arrow_udf:
        monkeypatch.setattr(udf, "HAS_ARROW_UDF", False)
    start_endpoint("moments", rules=[Rule(text=MOMENTS)])
    ddl = "STRUCT<day: DATE, at: TIMESTAMP>"
    spark.sql(f"SELECT ai_query('moments', 'x', returnType => '{ddl}') r").createOrReplaceTempView("moments")
    row = spark.sql("SELECT r.day, date_format(r.at, 'yyyy-MM-dd HH:mm') at FROM moments").first()
    assert (row.day, row.at) == (dt.date(2026, 1, 31), "2026-01-31 10:00")
    listed = f"ai_query('moments', 'x', returnType => '{ddl}', details => true).result.day"
    assert one(spark, listed)[1] == dt.date(2026, 1, 31)


def test_a_null_in_a_reply_is_null_unless_the_field_is_not_null(spark, start_endpoint):
    start_endpoint("nulls", rules=[Rule(text='{"a": null}')])
    assert one(spark, "ai_query('nulls', 'x', returnType => 'STRUCT<a: INT>')")[1].a is None
    call = "ai_query('nulls', 'x', returnType => 'STRUCT<a: INT NOT NULL>', failOnError => false)"
    assert "the field is NOT NULL" in one(spark, call)[1].errorMessage


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("'echo', 'x', responseFormat => 'json please'", 'or JSON such as {"type":"json_object"}'),
        ("'echo', 'x', responseFormat => '{\"type\":\"xml\"}'", "unknown form"),
        ("'echo', 'x', responseFormat => 'STRUCT<a: BINARY>'", "responseFormat: 'binary' at a cannot be read"),
        (f"'echo', 'x', responseFormat => '{FORM.replace('object', 'objekt')}'", "not a valid JSON Schema"),
        ("'vectors', 'x', responseFormat => 'STRUCT<a: INT>'", "only chat endpoints take it"),
    ],
)
def test_a_wrong_format_is_refused_before_any_call(spark, endpoint, arguments, words):
    with pytest.raises(Exception) as refused:
        spark.sql(f"SELECT ai_query({arguments})")
    assert words in str(refused.value)
    assert endpoint.stats()["requests"] == 0


def test_a_reply_from_the_ledger_that_has_another_form_says_how_to_ask_again(spark, endpoint, tmp_path):
    spark.conf.set("spark.batch_infer.ledger", str(tmp_path / "ledger"))
    assert one(spark, "ai_query('echo', 'x')")[1] == "echo: x"
    row = one(spark, "ai_query('echo', 'x', returnType => 'INT', details => true)")[1]
    assert "known from before" in row.error.message
    assert "set fresh" in row.error.message
    assert json.loads(row.message)["content"] == "echo: x"
    assert endpoint.stats()["requests"] == 1


def test_packs_are_counted_and_one_bad_text_is_one_error(spark, start_endpoint):
    fields = {"task": "embeddings", "inputs_per_request": 50}
    endpoint = start_endpoint("packed", fields=fields)
    texts = spark.range(500).selectExpr("id", "concat('text ', id) AS body").coalesce(1)
    call = bi.ai_query("packed", "body", details=True)
    assert texts.select(call.alias("r")).where("r.error IS NULL AND size(r.result) = 16").count() == 500
    assert 10 <= endpoint.stats()["requests"] <= 12  # a pack ends where nothing more has been read yet
    endpoint.configure(rules=[Rule(match="text 321", status=400)])
    endpoint.reset()
    rows = texts.select("id", call.alias("r")).collect()
    assert [(row.id, row.r.error.kind) for row in rows if row.r.error is not None] == [(321, "bad_request")]
    assert sum(len(row.r.result) == 16 for row in rows if row.r.result is not None) == 499
    assert endpoint.stats()["requests"] < 30


def test_tools_reach_the_endpoint_and_their_calls_come_back(spark, start_endpoint):
    called = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": '{"x": 1}'}}
    body = {"choices": [{"message": {"content": None, "tool_calls": [called]}, "finish_reason": "tool_calls"}]}
    endpoint = start_endpoint("tools", rules=[Rule(body=json.dumps(body))])
    tools = [{"type": "function", "function": {"name": "find", "parameters": {"type": "object", "properties": {}}}}]
    parameters = json.dumps({"tools": tools, "tool_choice": "auto", "max_tokens": 9})
    for kind in ("STRING", "STRUCT<a: INT>"):
        call = f"ai_query('tools', 'x', returnType => '{kind}', modelParameters => '{parameters}', details => true)"
        row = one(spark, call)[1]
        assert [tuple(call) for call in row.tool_calls] == [("c1", "find", '{"x": 1}')]
        assert (row.error, row.result) == (None, "" if kind == "STRING" else None)
    for sent in endpoint.bodies():
        assert (sent["tools"], sent["tool_choice"], sent["max_tokens"]) == (tools, "auto", 9)


STEP = {
    "type": "object",
    "properties": {
        "action": {"type": "string", "maxLength": 24},
        "minutes": {"type": "integer", "minimum": 1, "maximum": 60},
    },
    "required": ["action", "minutes"],
    "additionalProperties": False,
}
TICKET = {
    "type": "object",
    "properties": {
        "topic": {"enum": ["delivery", "payment", "product", "other"]},
        "urgent": {"type": "boolean"},
        "steps": {"type": "array", "minItems": 1, "maxItems": 2, "items": STEP},
    },
    "required": ["topic", "urgent", "steps"],
    "additionalProperties": False,
}


def ask_the_local_model(spark, rows):
    """Typed rows of the embedded model, whose server keeps to the schema by a grammar. How many, and what they took."""
    tickets = spark.read.parquet("sample_data/tickets.parquet").where("body IS NOT NULL").limit(rows)
    prompt = tickets.selectExpr("concat('Describe this support ticket as JSON: ', left(body, 300)) AS prompt")
    form = {"type": "json_schema", "json_schema": {"name": "ticket", "schema": TICKET, "strict": True}}
    kind = bi.schema_to_ddl(TICKET)
    call = bi.ai_query(
        "local/chat", "prompt", response_format=form, return_type=kind, details=True,
        model_parameters={"max_tokens": 400, "temperature": 0},  # a character may be four tokens
    )  # fmt: skip
    answers = [row.r for row in prompt.select(call.alias("r")).collect()]
    assert len(answers) == rows
    for answer in answers:
        assert answer.error is None, answer.error.message
        assert answer.result.topic in TICKET["properties"]["topic"]["enum"]
        assert isinstance(answer.result.urgent, bool)
        assert 1 <= len(answer.result.steps) <= 2
        assert all(1 <= step.minutes <= 60 and len(step.action) <= 24 for step in answer.result.steps)
    print(f"{len(answers)} typed rows, {sum(answer.attempts for answer in answers)} requests")


@pytest.mark.local_model
def test_a_nested_schema_on_the_embedded_model(spark):
    ask_the_local_model(spark, 12)


@pytest.mark.local_model
@pytest.mark.long
@pytest.mark.timeout(1200)  # some three seconds a row
def test_a_hundred_typed_rows_of_the_embedded_model(spark):
    ask_the_local_model(spark, 100)

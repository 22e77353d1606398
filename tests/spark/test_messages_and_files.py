"""Requests that are more than a prompt: messages, images, samples."""

import base64
import json

import pytest

import batch_infer as bi

pytestmark = pytest.mark.usefixtures("no_ledger")

PNG = b"\x89PNG\r\n\x1a\n" + b"0" * 8
GIF = b"GIF89a" + b"1" * 8


def url(data, kind):
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def images(body):
    return [block["image_url"]["url"] for block in body["messages"][-1]["content"] if block["type"] == "image_url"]


def test_messages_reach_the_endpoint_as_they_are(spark, endpoint):
    spark.sql(
        """SELECT ai_query('echo', array(
            named_struct('role', 'system', 'content', 'Be "brief".'),
            named_struct('role', 'user', 'content', 'grüß dich\n💥'))) r"""
    ).collect()
    assert endpoint.bodies()[0]["messages"] == [
        {"role": "system", "content": 'Be "brief".'},
        {"role": "user", "content": "grüß dich\n💥"},
    ]


def test_a_column_of_messages_of_different_lengths(spark, endpoint):
    rows = [
        ([("system", "s", None), ("user", "a", "ann")],),
        (None,),
        ([("user", "b", None)],),
    ]
    df = spark.createDataFrame(rows, "m ARRAY<STRUCT<role: STRING, content: STRING, name: STRING>>").coalesce(1)
    assert [row.r for row in df.select(bi.ai_query("echo", "m").alias("r")).collect()] == ["echo: a", None, "echo: b"]
    sent = sorted((body["messages"] for body in endpoint.bodies()), key=len)
    assert sent == [
        [{"role": "user", "content": "b"}],
        [{"role": "system", "content": "s"}, {"role": "user", "content": "a", "name": "ann"}],
    ]


SIGNED = (
    '{"role":"assistant", "content":[{"type":"reasoning","signature":"Eq/+==","n":1.50},{"type":"text","text":"a"}]}'
)


def sent_messages(endpoint):
    """The messages of the latest request, as they were written."""
    return endpoint._ask("bodies")[-1].split('"messages":', 1)[1][:-1]


def test_a_string_that_is_a_json_array_of_messages_is_messages_byte_for_byte(spark, endpoint):
    text = f'[{{"role":"user","content":"hi"}}, {SIGNED},\n {{"role":"user","content":"go on"}}]'
    spark.createDataFrame([(text,)], "m STRING").createOrReplaceTempView("threads")
    assert spark.sql("SELECT ai_query('echo', m) r FROM threads").first().r == "echo: go on"
    assert sent_messages(endpoint) == text


@pytest.mark.parametrize(
    "messages",
    [
        "transform(array('a', body), x -> named_struct('role', 'user', 'content', x))",
        "filter(array(named_struct('role', 'user', 'content', body)), m -> m.role = 'user')",
    ],
)
def test_messages_may_be_made_with_a_lambda(spark, endpoint, messages):
    query = f"SELECT ai_query('echo', {messages}) r FROM (SELECT concat('b', id) body FROM range(2))"
    assert sorted(row.r for row in spark.sql(query).collect()) == ["echo: b0", "echo: b1"]


def test_a_prompt_that_merely_looks_like_json_stays_a_prompt(spark, endpoint):
    for text in ('[{"id": 1}]', "[]", '{"role": "user", "content": "hi"}', "[WARN] disk full"):
        assert spark.createDataFrame([(text,)], "m STRING").select(bi.ai_query("echo", "m").alias("r")).first().r
        assert endpoint.bodies()[-1]["messages"] == [{"role": "user", "content": text}]


def test_the_next_turn_is_asked_from_a_table_with_the_message_of_the_last(spark, endpoint):
    first = "ai_query('echo', q, details => true)"
    question = "to_json(named_struct('role', 'user', 'content', q))"
    more = """to_json(named_struct('role', 'user', 'content', 'And then?'))"""
    spark.sql("SELECT 'Why?' q").createOrReplaceTempView("questions")
    spark.sql(f"SELECT q, {first} r FROM questions").createOrReplaceTempView("turn1")
    row = spark.sql(f"SELECT ai_query('echo', array({question}, r.message, {more})) t FROM turn1").first()
    assert row.t == "echo: And then?"
    assert [message["content"] for message in endpoint.bodies()[-1]["messages"]] == ["Why?", "echo: Why?", "And then?"]


@pytest.mark.parametrize("has_arrow_udf", [True, False])
def test_messages_as_json_in_an_array(spark, endpoint, monkeypatch, has_arrow_udf):
    from batch_infer.spark import udf

    monkeypatch.setattr(udf, "HAS_ARROW_UDF", has_arrow_udf and udf.HAS_ARROW_UDF)
    user = '{"role":"user","content":"x"}'
    rows = [([SIGNED, user],), ([user, None],), (None,), (["plain"],), ([],)]
    df = spark.createDataFrame(rows, "m ARRAY<STRING>").coalesce(1)
    got = [row.r for row in df.select(bi.ai_query("echo", "m", details=True).alias("r")).collect()]
    assert got[0].result == "echo: x"
    assert sent_messages(endpoint) == f"[{SIGNED},{user}]"
    assert got[2] is None
    assert got[1] is None or got[1].result is None
    for row, words in ((got[3], "element 0 is not a message as JSON"), (got[4], "empty array")):
        assert (row.error.kind, row.attempts, row.usage.total_tokens) == ("bad_request", 0, None)
        assert words in row.error.message
    assert endpoint.stats()["requests"] == 1


@pytest.mark.parametrize("has_arrow_udf", [True, False])
def test_content_may_be_blocks(spark, endpoint, monkeypatch, has_arrow_udf):
    from batch_infer.spark import udf

    monkeypatch.setattr(udf, "HAS_ARROW_UDF", has_arrow_udf and udf.HAS_ARROW_UDF)
    spark.sql(
        """SELECT ai_query('echo', array(named_struct('role', 'user', 'content', array(
            named_struct('type', 'text', 'text', 'what?', 'image_url', NULL),
            named_struct('type', 'image_url', 'text', NULL, 'image_url', named_struct('url', 'data:x')))))) r"""
    ).collect()
    assert endpoint.bodies()[-1]["messages"] == [
        {
            "role": "user",
            "content": [{"type": "text", "text": "what?"}, {"type": "image_url", "image_url": {"url": "data:x"}}],
        }
    ]


def test_a_job_takes_messages_as_json_too(spark, endpoint, tmp_path):
    user = '{"role":"user","content":"x"}'
    df = spark.createDataFrame([(1, [SIGNED, user]), (2, ["plain"]), (3, None), (4, [None])], "id INT, m ARRAY<STRING>")
    out = str(tmp_path / "out")
    summary = bi.run(df, endpoint="echo", request="m", output=out, ledger=str(tmp_path / "ledger"), progress=False)
    assert (summary.succeeded, summary.failed, summary.null, summary.errors) == (1, 1, 2, {"bad_request": 1})
    assert sent_messages(endpoint) == f"[{SIGNED},{user}]"
    assert endpoint.stats()["requests"] == 1


@pytest.fixture
def custom_endpoint(monkeypatch):
    """Plans calls of an endpoint `inputs` that serves a custom model, and echoes what would be sent."""
    from pyspark.sql import functions as F  # noqa: N812

    from batch_infer.contract.endpoint import Endpoint
    from batch_infer.spark import column, planning
    from batch_infer.spark.functions import ai_query as sql

    made = Endpoint(name="inputs", base_url="http://localhost:1", model="m", task="custom")
    monkeypatch.setattr(planning, "find_endpoint", lambda name, settings: made)
    for module in (column, sql):
        monkeypatch.setattr(module, "build_udf", lambda plan: F.udf(lambda text: text))


def test_inputs_of_a_custom_model_become_json(spark, custom_endpoint):
    inputs = "named_struct('n', id, 'x', 0.10BD, 'none', string(NULL), 'inner', map('a', 1))"
    call = f"ai_query('inputs', IF(id = 1, NULL, {inputs}), returnType => 'STRING')"
    expected = ['{"n":0,"x":0.10,"none":null,"inner":{"a":1}}', None]
    assert [row.r for row in spark.sql(f"SELECT {call} r FROM range(2)").collect()] == expected
    df = spark.sql(f"SELECT IF(id = 1, NULL, {inputs}) i FROM range(2)")
    got = [row.r for row in df.select(bi.ai_query("inputs", "i", return_type="STRING").alias("r")).collect()]
    assert got == expected
    assert spark.sql("SELECT ai_query('inputs', map('a', 1), returnType => 'STRING') r").first().r == '{"a":1}'


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("named_struct('a', 1)", "serves a custom model, which can answer anything. Say the type"),
        ("'text', returnType => 'DOUBLE'", "a custom endpoint takes a STRUCT (or MAP) of its inputs"),
        ("array('x'), returnType => 'DOUBLE'", "a custom endpoint takes a STRUCT"),
        ("named_struct('a', 1), returnType => 'DOUBLE', files => X'00'", "files can only go to a chat endpoint"),
        (
            "named_struct('a', 1), returnType => 'INT', responseFormat => 'STRUCT<a: INT>'",
            "only chat endpoints take it",
        ),
    ],
)
def test_what_a_custom_model_cannot_take_is_refused(spark, custom_endpoint, arguments, words):
    with pytest.raises(Exception) as refused:
        spark.sql(f"SELECT ai_query('inputs', {arguments})")
    assert words in str(refused.value)


def test_files_become_data_urls(spark, endpoint):
    df = spark.createDataFrame([("what?", bytearray(PNG))], "body STRING, image BINARY")
    df.createOrReplaceTempView("images")
    assert spark.sql("SELECT ai_query('echo', body, files => image) r FROM images").first().r == "echo: what?"
    assert df.select(bi.ai_query("echo", "body", files="image").alias("r")).first().r == "echo: what?"
    for body in endpoint.bodies():
        assert body["messages"][0]["content"][0] == {"type": "text", "text": "what?"}
        assert images(body) == [url(PNG, "image/png")]


def test_several_files_keep_their_order_and_nulls_are_left_out(spark, endpoint):
    rows = [("a", [bytearray(PNG), None, bytearray(GIF)]), ("b", None), ("c", [])]
    df = spark.createDataFrame(rows, "body STRING, images ARRAY<BINARY>").coalesce(1)
    assert df.select(bi.ai_query("echo", "body", files="images").alias("r")).count() == 3
    df.select(bi.ai_query("echo", "body", files="images").alias("r")).collect()
    bodies = {json.dumps(body["messages"][0]["content"]): body for body in endpoint.bodies()}
    assert '"b"' in bodies
    assert '"c"' in bodies
    (with_images,) = [body for text, body in bodies.items() if text not in ('"b"', '"c"')]
    assert images(with_images) == [url(PNG, "image/png"), url(GIF, "image/gif")]


def test_files_beside_messages_join_the_users_last(spark, endpoint):
    messages = "array(named_struct('role', 'user', 'content', 'what?'))"
    spark.sql(f"SELECT ai_query('echo', {messages}, files => X'{PNG.hex()}') r").collect()
    assert images(endpoint.bodies()[0]) == [url(PNG, "image/png")]


def test_other_files_make_other_request_keys(spark, endpoint):
    rows = [(bytearray(PNG),), (bytearray(GIF),), (None,)]
    spark.createDataFrame(rows, "image BINARY").createOrReplaceTempView("i")
    rows = spark.sql("SELECT ai_query('echo', 'x', files => image, details => true).request_key k FROM i").collect()
    assert len({row.k for row in rows}) == 3


def keys(spark, call, table="range(3)"):
    return [row.k for row in spark.sql(f"SELECT {call}.request_key k FROM {table}").collect()]


def test_a_sample_changes_the_request_key_and_not_the_body(spark, endpoint):
    plain = keys(spark, "ai_query('echo', 'x', details => true)", "range(1)")
    zero = keys(spark, "ai_query('echo', 'x', details => true, sample => 0)", "range(1)")
    one = keys(spark, "ai_query('echo', 'x', details => true, sample => 1)", "range(1)")
    column = keys(spark, "ai_query('echo', 'x', details => true, sample => id)")
    narrow = keys(spark, "ai_query('echo', 'x', details => true, sample => cast(id AS INT))")
    assert plain == zero
    assert column[:2] == zero + one
    assert column == narrow
    assert len(set(column)) == 3
    assert {json.dumps(body) for body in endpoint.bodies()} == {json.dumps(endpoint.bodies()[0])}


def test_samples_in_python(spark, endpoint):
    df = spark.range(2).selectExpr("id", "'x' AS body").coalesce(1)

    def asked(**options):
        column = bi.ai_query("echo", "body", details=True, **options).getField("request_key")
        return [row.k for row in df.select(column.alias("k")).collect()]

    assert asked(sample=1) == [asked(sample=df.id)[1]] * 2
    assert asked() == [asked(sample=df.id)[0]] * 2


def test_files_and_samples_together(spark, endpoint):
    call = f"ai_query('echo', 'x', files => X'{PNG.hex()}', sample => id, details => true)"
    assert len(set(keys(spark, call))) == 3
    assert images(endpoint.bodies()[0]) == [url(PNG, "image/png")]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("ai_query('echo', 'x', sample => 1.5)", "'sample' is a whole number"),
        ("ai_query('echo', 'x', sample => 'a')", "'sample' is a whole number"),
        ("ai_query('echo', 'x', files => 'a.png')", "'files' is BINARY or ARRAY<BINARY>"),
        ("ai_query('vectors', 'x', files => X'00')", "files can only go to a chat endpoint"),
        (
            "ai_query('vectors', array(named_struct('role', 'user', 'content', 'x')))",
            "an embeddings endpoint takes a STR",
        ),
        ("ai_query('vectors', array('x'))", "Messages go to a chat endpoint"),
        (
            "ai_query('text', array(named_struct('role', 'user', 'content', 'x')))",
            "a completions endpoint takes a STRING",
        ),
        ("ai_query('echo', array(1))", "takes a STRING, or an ARRAY<STRUCT<role: STRING, content: STRING>>"),
        ("ai_query('echo', array(named_struct('role', 'user', 'content', 5)))", "the request is ARRAY<STRUCT"),
        ("ai_query('echo', 5)", "the request is INT"),
        ("ai_query('echo', named_struct('a', 1))", "Named inputs go to a custom model"),
        ("ai_query('text', 'x', files => X'00')", "files can only go to a chat endpoint"),
    ],
)
def test_other_types_are_refused_before_any_call(spark, endpoint, call, words):
    bi.register_endpoint("text", base_url=endpoint.base_url, model="m", task="completions")
    with pytest.raises(Exception) as refused:
        spark.sql(f"SELECT {call}")
    assert words in str(refused.value)
    assert endpoint.stats()["requests"] == 0

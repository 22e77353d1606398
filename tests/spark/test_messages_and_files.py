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
        ("ai_query('vectors', array(named_struct('role', 'user', 'content', 'x')))", "takes a STRING"),
        ("ai_query('echo', array('x'))", "takes a STRING, or an ARRAY<STRUCT<role: STRING, content: STRING>>"),
        ("ai_query('echo', 5)", "the request is INT"),
        ("ai_query('echo', named_struct('a', 1))", "the request is STRUCT"),
    ],
)
def test_other_types_are_refused_before_any_call(spark, endpoint, call, words):
    with pytest.raises(Exception) as refused:
        spark.sql(f"SELECT {call}")
    assert words in str(refused.value)
    assert endpoint.stats()["requests"] == 0

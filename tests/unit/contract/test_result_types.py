"""Typed results: types allowed, their schema and DDL, and reading replies: lenient around the JSON, strict inside."""

import datetime as dt
import json
import math
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_infer.contract.errors import ConfigError
from batch_infer.contract.result_types import (
    TypeMismatch,
    check_result_type,
    ddl_of,
    read_reply,
)
from tests.support.types_and_values import KINDS, UTC, array, mapping, struct, values

PERSON = struct(name="string", age="integer", tags=array("string"))


@pytest.mark.parametrize(
    "kind",
    [
        *("string", "boolean", "byte", "short", "integer", "long", "float", "double", "decimal(10,2)"),
        *("date", "timestamp", PERSON, array(PERSON), mapping(array("double")), struct(inner=PERSON)),
    ],
    ids=str,
)
def test_what_json_can_hold_is_allowed(kind):
    check_result_type(kind, "chat")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("timestamp_ntz", "'timestamp_ntz' cannot be read"),
        ("binary", "'binary' cannot be read"),
        ("variant", "read others as STRING and cast"),
        (array("binary"), "at []"),
        (struct(a=struct(b="binary")), "at a.b"),
        (struct(), "no fields"),
        (mapping("string", key="integer"), "a MAP needs STRING keys"),
        (mapping("binary"), "at {}"),
    ],
    ids=str,
)
def test_other_types_are_refused_with_the_place(kind, words):
    with pytest.raises(ConfigError) as refused:
        check_result_type(kind, "chat")
    assert str(refused.value).startswith("returnType: ")
    assert words in str(refused.value)


def test_embeddings_are_arrays_of_fractions():
    check_result_type(array("float"), "embeddings")
    check_result_type(array("double"), "embeddings")
    for kind in ("string", array("integer"), array(array("float")), PERSON):
        with pytest.raises(ConfigError, match="ARRAY<FLOAT>"):
            check_result_type(kind, "embeddings")


def test_the_ddl_quotes_names():
    kind = struct(**{"first name": "string", "a`b": "long", "select": mapping(array("decimal(10,2)"))})
    assert ddl_of(kind) == "STRUCT<`first name`: STRING, `a``b`: BIGINT, `select`: MAP<STRING, ARRAY<DECIMAL(10,2)>>>"
    assert [ddl_of(kind) for kind in ("byte", "short", "integer", "float")] == ["TINYINT", "SMALLINT", "INT", "FLOAT"]


ANN = {"name": "Ann", "age": 3, "tags": ["a"]}


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(ANN),
        f"\n  {json.dumps(ANN, indent=2)}  \n",
        f"```json\n{json.dumps(ANN)}\n```",
        f"```\n{json.dumps(ANN)}```",
        f"Here you are [as asked]:\n\n```json\n{json.dumps(ANN, indent=1)}\n```\nAnything else?",
        f"Sure! {json.dumps(ANN)} Hope that helps.",
        json.dumps({**ANN, "more": "is ignored"}),
    ],
)
def test_what_stands_around_the_json_is_dropped(text):
    assert read_reply(text, PERSON) == ANN


def test_an_array_of_one_object_in_prose_is_an_array():
    assert read_reply(f"Result: [{json.dumps(ANN)}].", array(PERSON)) == [ANN]


def test_a_fence_inside_a_string_is_text():
    value = {"name": "```1```", "age": 1, "tags": ["```json\n{}\n```"]}
    assert read_reply(json.dumps(value), PERSON) == value


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("no json here", PERSON, "holds no JSON"),
        ("", "integer", "holds no JSON"),
        ("null", "integer", "reply is null"),
        ("null", PERSON, "reply is null"),
        ("three", "integer", "holds no JSON"),
        ('"3"', "integer", "reply is a string, not a number"),
        ("true", "integer", "reply is a boolean, not a number"),
        ("3.5", "integer", "3.5, which does not fit INT"),
        ("128", "byte", "does not fit TINYINT"),
        (str(2**63), "long", "does not fit BIGINT"),
        ("1e999999999", "long", "does not fit BIGINT"),
        ("1" * 5000, "long", "holds no JSON"),
        ("1" * 400, "double", "does not fit DOUBLE"),
        ("1e400", "double", "does not fit DOUBLE"),
        ("1e39", "float", "does not fit FLOAT"),
        ("NaN", "double", "holds no JSON"),
        ("1", "boolean", "reply is a number, not a boolean"),
        ("123456789.5", "decimal(10,2)", "does not fit DECIMAL(10,2)"),
        ("1e999999999", "decimal(10,2)", "does not fit DECIMAL(10,2)"),
        ('{"name":"Ann"}', PERSON, "reply lacks 'age', 'tags'"),
        (
            '{"name":1,"age":"x"}',
            PERSON,
            "reply lacks 'tags'; reply.name is a number, not a string; reply.age is a str",
        ),
        ('"2026-02-30"', "date", "'2026-02-30', not a date such as 2026-01-31"),
        ("tomorrow", "date", "'tomorrow', not a date"),
        ("2026-01-31", "timestamp", "not a timestamp such as 2026-01-31T12:00:00Z"),
        ("9999-12-31T23:59:59-14:00", "timestamp", "in UTC is not in the years 1 to 9999"),
        ("0001-01-01T00:00:00+14:00", "timestamp", "in UTC is not in the years 1 to 9999"),
        ('{"name":3}', struct(name="date"), "reply.name is a number, not a date as text"),
        (json.dumps({**ANN, "age": "3"}), PERSON, "reply.age is a string, not a number"),
        (json.dumps({**ANN, "tags": "a"}), PERSON, "reply.tags is a string, not an array"),
        (json.dumps({**ANN, "tags": ["a", 1]}), PERSON, "reply.tags[1] is a number, not a string"),
        ("[1]", PERSON, "reply is an array, not an object"),
        ("{}", array("string"), "reply is an object, not an array"),
        ('{"a":1}', mapping("string"), "reply.a is a number, not a string"),
        ("[" * 100_000, array("string"), "holds no JSON"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_wrong_value_is_an_error_that_says_where(text, kind, words):
    with pytest.raises(TypeMismatch) as mismatch:
        read_reply(text, kind)
    assert words in str(mismatch.value)
    assert len(str(mismatch.value)) < 200


def test_a_null_inside_stays_null():
    assert read_reply('{"name":null,"age":1,"tags":[null]}', PERSON) == {"name": None, "age": 1, "tags": [None]}


def test_a_null_in_a_field_that_is_not_null_is_an_error():
    kind = struct(a="string", b="integer")
    kind["fields"][1]["nullable"] = False
    assert read_reply('{"a":null,"b":1}', kind) == {"a": None, "b": 1}
    with pytest.raises(TypeMismatch, match="reply.b is null, and the field is NOT NULL"):
        read_reply('{"a":"x","b":null}', kind)


def test_a_message_names_the_first_five_problems():
    with pytest.raises(TypeMismatch) as mismatch:
        read_reply(json.dumps(["x"] * 8), array("integer"))
    assert len(mismatch.value.problems) == 8
    assert str(mismatch.value).count("not a number") == 5


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("2026-01-31", "date", dt.date(2026, 1, 31)),
        (' "2026-01-31"\n', "date", dt.date(2026, 1, 31)),
        ('```json\n"2026-01-31"\n```', "date", dt.date(2026, 1, 31)),
        ("2026-01-31T12:00:00+02:00", "timestamp", dt.datetime(2026, 1, 31, 10, tzinfo=UTC)),
        ('"2026-01-31T12:00:00.5"', "timestamp", dt.datetime(2026, 1, 31, 12, 0, 0, 500_000, tzinfo=UTC)),
        ('{"at":"2026-01-31 12:00:00Z"}', struct(at="timestamp"), {"at": dt.datetime(2026, 1, 31, 12, tzinfo=UTC)}),
    ],
)
def test_dates_and_timestamps_are_iso_8601_and_in_utc_unless_they_say_otherwise(text, kind, value):
    assert read_reply(text, kind) == value


def test_a_string_is_the_reply_as_it_is():
    assert read_reply(' ```json\n{"a":1}``` ', "string") == ' ```json\n{"a":1}``` '


@pytest.mark.parametrize("text", ["true", "True", " TRUE.\n", "true."])
def test_a_boolean_may_be_a_word(text):
    assert read_reply(text, "boolean") is True


def test_whole_numbers_may_be_written_as_fractions():
    assert read_reply("3.0", "integer") == 3
    assert isinstance(read_reply("3.0", "integer"), int)
    assert read_reply("1e3", "long") == 1000


def test_decimals_keep_every_digit_and_take_the_types_scale():
    assert read_reply("12345678901234567890123456.78", "decimal(38,10)") == Decimal("12345678901234567890123456.78")
    assert str(read_reply("1.5", "decimal(10,2)")) == "1.50"
    assert read_reply("99999999.99", "decimal(10,2)") == Decimal("99999999.99")
    assert read_reply("0", "decimal(3,3)") == 0
    assert read_reply("1e-30", "decimal(3,3)") == 0


@given(st.data())
def test_every_value_survives_the_way_through_json(data):
    kind = data.draw(KINDS.filter(lambda kind: kind != "string"))
    check_result_type(kind, "chat")
    written, expected = data.draw(values(kind))
    text = json.dumps(written, ensure_ascii=data.draw(st.booleans()))
    assert read_reply(text, kind) == expected
    assert read_reply(f"```json\n{text}\n```", kind) == expected or "```" in text


@given(KINDS, st.text())
def test_any_text_is_read_or_refused(kind, text):
    try:
        value = read_reply(text, kind)
    except TypeMismatch:
        return
    assert value is not None
    assert not (isinstance(value, float) and math.isnan(value))

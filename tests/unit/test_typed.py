"""Typed results: types allowed, their schema and DDL, and reading replies: lenient around the JSON, strict inside."""

import json
import math
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_infer.contract.errors import ConfigError
from batch_infer.contract.typed import (
    TypeMismatch,
    check_result_type,
    ddl_of,
    json_schema,
    read_reply,
    response_format_of,
)


def array(element):
    return {"type": "array", "elementType": element, "containsNull": True}


def struct(**fields):
    return {
        "type": "struct",
        "fields": [{"name": name, "type": kind, "nullable": True, "metadata": {}} for name, kind in fields.items()],
    }


def mapping(value, key="string"):
    return {"type": "map", "keyType": key, "valueType": value, "valueContainsNull": True}


PERSON = struct(name="string", age="integer", tags=array("string"))


@pytest.mark.parametrize(
    "kind",
    [
        *("string", "boolean", "byte", "short", "integer", "long", "float", "double", "decimal(10,2)"),
        *(PERSON, array(PERSON), mapping(array("double")), struct(inner=PERSON)),
    ],
    ids=str,
)
def test_what_json_can_hold_is_allowed(kind):
    check_result_type(kind, "chat")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("timestamp", "'timestamp' cannot be read"),
        ("binary", "'binary' cannot be read"),
        ("date", "read others as STRING and cast"),
        (array("date"), "at []"),
        (struct(a=struct(b="binary")), "at a.b"),
        (struct(), "no fields"),
        (mapping("string", key="integer"), "a MAP needs STRING keys"),
        (mapping("date"), "at {}"),
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


def test_the_schema_is_strict():
    assert json_schema(struct(n="long", ok="boolean", x="double", m=mapping("string"), a=array("string"))) == {
        "type": "object",
        "properties": {
            "n": {"type": "integer"},
            "ok": {"type": "boolean"},
            "x": {"type": "number"},
            "m": {"type": "object", "additionalProperties": {"type": "string"}},
            "a": {"type": "array", "items": {"type": "string"}},
        },
        "required": ["n", "ok", "x", "m", "a"],
        "additionalProperties": False,
    }


def test_a_struct_of_one_struct_names_the_schema_as_databricks_documents_it():
    named = response_format_of(struct(person=PERSON))["json_schema"]
    assert (named["name"], named["schema"], named["strict"]) == ("person", json_schema(PERSON), True)
    plain = response_format_of(PERSON)
    assert plain["type"] == "json_schema"
    assert (plain["json_schema"]["name"], plain["json_schema"]["schema"]) == ("reply", json_schema(PERSON))
    assert response_format_of(struct(one="string"))["json_schema"]["name"] == "reply"


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


KINDS = st.recursive(
    st.sampled_from(["string", "boolean", "byte", "short", "integer", "long", "float", "double", "decimal(20,3)"]),
    lambda inner: st.one_of(
        inner.map(array),
        inner.map(mapping),
        st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), inner, min_size=1, max_size=3)
        .map(lambda fields: struct(**fields)),
    ),
    max_leaves=6,
)  # fmt: skip
BITS = {"byte": 7, "short": 15, "integer": 31, "long": 63}


def values(kind):
    """Values of a type: as JSON holds them, and as they are read."""
    if isinstance(kind, str):
        if kind == "string":
            return st.text(st.characters(exclude_categories=["Cs"])).map(lambda text: (text, text))
        if kind == "boolean":
            return st.booleans().map(lambda value: (value, value))
        if kind in BITS:
            return st.integers(-(2 ** BITS[kind]), 2 ** BITS[kind] - 1).map(lambda number: (number, number))
        if kind.startswith("decimal"):
            return st.integers(-(10**12), 10**12).map(lambda n: (n / 1000, Decimal(n) / 1000))
        return st.floats(width=32, allow_nan=False, allow_infinity=False).map(lambda number: (number, number))
    if kind["type"] == "array":
        return st.lists(values(kind["elementType"]), max_size=3).map(
            lambda xs: ([x[0] for x in xs], [x[1] for x in xs])
        )
    if kind["type"] == "map":
        keys = st.text(st.characters(exclude_categories=["Cs"]))
        return st.dictionaries(keys, values(kind["valueType"]), max_size=3).map(
            lambda xs: ({k: v[0] for k, v in xs.items()}, [(k, v[1]) for k, v in xs.items()])
        )
    fields = {field["name"]: values(field["type"]) for field in kind["fields"]}
    return st.fixed_dictionaries(fields).map(
        lambda xs: ({k: v[0] for k, v in xs.items()}, {k: v[1] for k, v in xs.items()})
    )


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

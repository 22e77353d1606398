"""Spark types to JSON Schemas and back: what is asked for holds exactly what is read."""

import json

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_infer.contract.errors import ConfigError
from batch_infer.contract.json_schema import json_schema, response_format_of, schema_to_ddl, type_of_schema
from batch_infer.contract.result_types import check_result_type, read_reply
from tests.support.types_and_values import KINDS, array, mapping, struct, values

PERSON = struct(name="string", age="integer", tags=array("string"))


def test_the_schema_is_strict():
    assert json_schema(struct(n="long", ok="boolean", x="double", d="date", t="timestamp", a=array("string"))) == {
        "type": "object",
        "properties": {
            "n": {"type": "integer"},
            "ok": {"type": "boolean"},
            "x": {"type": "number"},
            "d": {"type": "string", "format": "date"},
            "t": {"type": "string", "format": "date-time"},
            "a": {"type": "array", "items": {"type": "string"}},
        },
        "required": ["n", "ok", "x", "d", "t", "a"],
        "additionalProperties": False,
    }


def test_a_struct_of_one_struct_names_the_schema_as_databricks_documents_it():
    named = response_format_of(struct(person=PERSON))["json_schema"]
    assert (named["name"], named["schema"], named["strict"]) == ("person", json_schema(PERSON), True)
    plain = response_format_of(PERSON)
    assert plain["type"] == "json_schema"
    assert (plain["json_schema"]["name"], plain["json_schema"]["schema"]) == ("reply", json_schema(PERSON))
    assert response_format_of(struct(one="string"))["json_schema"]["name"] == "reply"


@pytest.mark.parametrize("kind", ["integer", "string", array("string"), array(PERSON)], ids=str)
def test_what_is_not_an_object_is_asked_for_inside_one(kind):
    asked = response_format_of(kind)["json_schema"]
    assert asked["schema"] == json_schema(struct(value=kind))
    assert asked["strict"]


def test_a_map_cannot_be_strict():
    assert response_format_of(struct(a="string", m=array(mapping("string"))))["json_schema"]["strict"] is False
    assert response_format_of(mapping("long"))["json_schema"]["schema"] == json_schema(mapping("long"))


def widened(kind):
    """What the way through a schema makes of a type: whole numbers BIGINT, other numbers DOUBLE."""
    if isinstance(kind, str):
        whole = {"byte": "long", "short": "long", "integer": "long", "float": "double"}
        return "double" if kind.startswith("decimal") else whole.get(kind, kind)
    if kind["type"] == "array":
        return array(widened(kind["elementType"]))
    if kind["type"] == "map":
        return mapping(widened(kind["valueType"]))
    made = struct(**{field["name"]: widened(field["type"]) for field in kind["fields"]})
    for field in made["fields"]:
        field["nullable"] = False  # a type's schema requires all
    return made


@given(KINDS)
def test_a_type_comes_back_from_its_schema(kind):
    schema = json_schema(kind)
    jsonschema.Draft202012Validator.check_schema(schema)
    back = type_of_schema(schema)
    assert back == widened(kind)
    assert json_schema(back) == schema
    assert type_of_schema(json_schema(back)) == back


@given(st.data())
def test_every_value_of_a_type_follows_its_schema_and_is_read_as_it_was_written(data):
    kind = data.draw(KINDS.filter(lambda kind: kind != "string"))
    written, expected = data.draw(values(kind))
    jsonschema.validate(written, json_schema(kind), cls=jsonschema.Draft202012Validator)
    assert read_reply(json.dumps(written), kind) == expected


PYDANTIC = {
    "$defs": {
        "Line": {
            "properties": {"sku": {"type": "string"}, "count": {"minimum": 1, "type": "integer"}},
            "required": ["sku", "count"],
            "title": "Line",
            "type": "object",
        },
        "Mood": {"enum": ["calm", "angry"], "title": "Mood", "type": "string"},
    },
    "properties": {
        "lines": {"items": {"$ref": "#/$defs/Line"}, "type": "array"},
        "mood": {"$ref": "#/$defs/Mood"},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
        "score": {"type": ["number", "null"]},
        "due": {"format": "date", "type": "string"},
        "kind": {"const": "order"},
        "tags": {"additionalProperties": {"type": "string"}, "type": "object"},
    },
    "required": ["lines", "mood"],
    "title": "Order",
    "type": "object",
}


def test_a_schema_as_pydantic_writes_it_has_a_type():
    ddl = schema_to_ddl(PYDANTIC)
    assert ddl == (
        "STRUCT<`lines`: ARRAY<STRUCT<`sku`: STRING, `count`: BIGINT>>, `mood`: STRING, `note`: STRING, "
        "`score`: DOUBLE, `due`: DATE, `kind`: STRING, `tags`: MAP<STRING, STRING>>"
    )
    nullable = {field["name"]: field["nullable"] for field in type_of_schema(PYDANTIC)["fields"]}
    assert [name for name, may_be_null in nullable.items() if not may_be_null] == ["lines", "mood"]
    check_result_type(type_of_schema(PYDANTIC), "chat")


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({}, "at the top, the type None has no Spark type"),
        ({"type": "null"}, "'null' has no Spark type"),
        ({"type": "object"}, "without properties"),
        ({"type": "array"}, "at []"),
        ({"properties": {"a": {"anyOf": [{"type": "string"}, {"type": "integer"}]}}}, "at a, it allows several types"),
        ({"enum": ["a", 1]}, "several types"),
        ({"$ref": "#/$defs/missing"}, "leads nowhere"),
        ({"$ref": "https://example.com/s.json"}, "outside the schema"),
        ({"type": "array", "items": {"$ref": "#"}}, "refers to itself"),
        ({"anyOf": [{"type": "null"}]}, "several types"),
    ],
    ids=str,
)  # fmt: skip
def test_a_schema_without_a_type_is_refused_with_the_place(schema, words):
    with pytest.raises(ConfigError) as refused:
        type_of_schema(schema)
    assert str(refused.value).startswith("JSON Schema: ")
    assert words in str(refused.value)

"""Replies with a `responseFormat`: what is taken, what is read of it, and what a model is told about the others."""

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_infer.contract.errors import ConfigError
from batch_infer.contract.json_schema import response_format_of
from batch_infer.contract.reply_reader import ReplyReader, check_schema
from batch_infer.contract.result_types import TypeMismatch
from tests.support.types_and_values import KINDS, array, mapping, struct, values

PERSON = struct(name="string", age="integer")
ANN = '{"name": "Ann", "age": 3}'


def as_ddl(kind, result="string"):
    return ReplyReader(result, response_format_of(kind), kind)


def by_schema(schema, result="string"):
    form = {"type": "json_schema", "json_schema": {"name": "r", "schema": schema, "strict": True}}
    return ReplyReader(result, form)


def problems(reader, text):
    with pytest.raises(TypeMismatch) as mismatch:
        reader.read(text)
    return str(mismatch.value)


OBJECT = ReplyReader("string", {"type": "json_object"})


@pytest.mark.parametrize("text", [ANN, f"```json\n{ANN}\n```", f"Here you are: {ANN} Anything else?", f"  {ANN}\n"])
@pytest.mark.parametrize(
    "reader", [OBJECT, as_ddl(PERSON), by_schema({"type": "object"})], ids=["any", "ddl", "schema"]
)
def test_json_text_is_the_json_alone_as_it_was_written(reader, text):
    assert reader.read(text) == ANN


def test_without_a_format_or_with_text_every_text_is_a_result():
    for reader in (ReplyReader("string"), ReplyReader("string", {"type": "text"})):
        assert reader.takes_any_text
        assert reader.read("```json\n{}\n```") == "```json\n{}\n```"
    assert not OBJECT.takes_any_text


@pytest.mark.parametrize(
    ("text", "words"), [("[1]", "not a JSON object"), ("3", "not a JSON object"), ("no", "holds no JSON")]
)
def test_a_json_object_is_an_object(text, words):
    assert words in problems(OBJECT, text)


def test_text_of_a_format_given_as_ddl_follows_its_type():
    assert problems(as_ddl(PERSON), '{"name": "Ann"}') == "reply lacks 'age'"
    assert problems(as_ddl(PERSON), '{"name": 1, "age": "x"}').count(";") == 1


def test_what_was_wrapped_for_the_wire_is_unwrapped():
    people = array(PERSON)
    wrapped = f'{{"value": [{ANN}, {ANN}]}}'
    assert as_ddl(people).read(wrapped) == f"[{ANN}, {ANN}]"
    assert as_ddl(people, people).read(f"Sure: {wrapped}") == [json.loads(ANN)] * 2
    assert as_ddl(people, people).read(f"[{ANN}]") == [json.loads(ANN)]  # an endpoint that ignores the format
    assert as_ddl("integer", "integer").read('{"value": 7}') == 7
    assert as_ddl("string").read('{"value": "seven"}') == "seven"
    assert "is an object, not an array" in problems(as_ddl(people), '{"values": []}')
    own = struct(value="integer")
    assert as_ddl(own, own).read('{"value": 7}') == {"value": 7}  # a user's own field of that name is no wrapping


def test_the_named_form_may_be_the_return_type_too():
    named = struct(person=PERSON)
    assert as_ddl(named, named).read(ANN) == {"person": json.loads(ANN)}
    assert as_ddl(named, PERSON).read(ANN) == json.loads(ANN)
    assert as_ddl(named).read(ANN) == ANN


SCHEMA = {
    "type": "object",
    "properties": {
        "label": {"enum": ["a", "b"]},
        "score": {"type": "number", "minimum": 0, "maximum": 1},
        "code": {"type": "string", "pattern": "^[A-Z]{2}$"},
        "day": {"type": "string", "format": "date"},
        "inner": {"$ref": "#/$defs/inner"},
    },
    "required": ["label", "score"],
    "additionalProperties": False,
    "$defs": {
        "inner": {"type": "object", "required": ["x"], "properties": {"x": {"type": "integer", "multipleOf": 5}}}
    },
}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"label": "c", "score": 0.5}', "reply.label: 'c' is not one of ['a', 'b']"),
        ('{"label": "a", "score": 1.5}', "reply.score: 1.5 is greater than the maximum of 1"),
        ('{"label": "a", "score": 1, "code": "ab"}', "reply.code: 'ab' does not match"),
        ('{"label": "a", "score": 1, "day": "soon"}', "reply.day: 'soon' is not a 'date'"),
        ('{"label": "a", "score": 1, "inner": {"x": 7}}', "reply.inner.x: 7 is not a multiple of 5"),
        ('{"label": "a", "score": 1, "more": 1}', "reply: Additional properties are not allowed"),
        ('{"label": "a"}', "reply: 'score' is a required property"),
        ('{"label": "a", "score": 1e400}', "cannot be checked against its schema"),
        ("[]", "reply: [] is not of type 'object'"),
    ],
)
def test_a_schema_is_honoured_in_full(text, words):
    assert words in problems(by_schema(SCHEMA), text)


@pytest.mark.parametrize(("text", "is_good"), [("19.99", True), ("1e300", True), ("-0.07", True), ("19.995", False)])
def test_multiples_of_a_fraction_are_those_of_its_decimal_number(text, is_good):
    reader = by_schema({"type": "object", "properties": {"price": {"type": "number", "multipleOf": 0.01}}})
    reply = f'{{"price": {text}}}'
    if is_good:
        assert reader.read(reply) == reply
    else:
        assert problems(reader, reply) == "reply.price: 19.995 is not a multiple of 0.01"


def test_what_follows_the_schema_is_taken_and_optional_fields_may_be_absent():
    kind = struct(label="string", score="double", code="string")
    assert by_schema(SCHEMA).read('{"label": "a", "score": 1.0}') == '{"label": "a", "score": 1.0}'
    assert by_schema(SCHEMA, kind).read('{"label": "a", "score": 1}') == {"label": "a", "score": 1.0, "code": None}
    assert "lacks 'size'" in problems(by_schema(SCHEMA, not_null("size")), '{"label": "a", "score": 1}')


def not_null(name):
    kind = struct(**{name: "string"})
    kind["fields"][0]["nullable"] = False
    return kind


def test_a_long_value_is_not_repeated_in_the_problem():
    text = json.dumps({"label": "x" * 5000, "score": 1})
    said = problems(by_schema(SCHEMA), text)
    assert said == "reply.label: does not follow 'enum': ['a', 'b']"


def test_a_schema_that_refers_to_itself_without_end_is_that_rows_error():
    assert "cannot be checked" in problems(by_schema({"$ref": "#"}), "{}")


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "objekt"}, "not a valid JSON Schema, at type"),
        ({"type": "object", "properties": {"a": {"minimum": "x"}}}, "at properties/a/minimum"),
        ({"$ref": "https://example.com/schema.json"}, "nothing is fetched"),
        ({"properties": {"a": {"$ref": "#/$defs/b"}}}, "'#/$defs/b' leads nowhere"),
    ],
    ids=str,
)
def test_what_is_no_schema_is_refused_before_any_call(schema, words):
    with pytest.raises(ConfigError) as refused:
        check_schema(schema)
    assert words in str(refused.value)


def test_a_schema_may_refer_to_its_own_parts():
    check_schema(SCHEMA)
    check_schema({"$defs": {"a/b": {"type": "string"}}, "properties": {"x": {"$ref": "#/$defs/a~1b"}}})


def correction(reader, text):
    with pytest.raises(TypeMismatch) as mismatch:
        reader.read(text)
    return reader.correction(mismatch.value)


def test_a_correction_names_the_first_problems_and_asks_for_the_json_alone():
    told = correction(as_ddl(array("integer")), json.dumps(["x"] * 9))
    assert told.count("\n- reply[") == 5
    assert "corrected JSON alone" in told
    assert "JSON Schema" not in told  # the endpoint was sent it
    assert len(told) < 1000


def test_without_a_format_the_correction_says_the_schema_unless_it_is_long():
    told = correction(ReplyReader(PERSON), "Ann is three.")
    assert '"age":{"type":"integer"}' in told
    long = struct(**{f"a_field_of_a_long_name_{i}": "string" for i in range(200)})
    assert "JSON Schema" not in correction(ReplyReader(long), "{}")


def test_the_hint_is_for_types_without_a_format():
    assert "add responseFormat => 'STRUCT<`name`: STRING, `age`: INT>'" in ReplyReader(PERSON).hint
    assert ReplyReader("string").hint == as_ddl(PERSON, PERSON).hint == ""


@given(st.data())
def test_every_value_survives_the_way_through_the_wires_form(data):
    kind = data.draw(KINDS)
    written, expected = data.draw(values(kind))
    form = response_format_of(kind)
    is_wrapped = form["json_schema"]["schema"].get("required") == ["value"]
    text = json.dumps({"value": written} if is_wrapped else written, ensure_ascii=data.draw(st.booleans()))
    named = struct(only=kind)
    if not isinstance(kind, str) and kind["type"] == "struct":
        assert ReplyReader(named, response_format_of(named), named).read(text) == {"only": expected}
    reader = ReplyReader(kind, form, kind)
    first = kind["fields"][0] if not isinstance(kind, str) and kind["type"] == "struct" else None
    if first is not None and len(kind["fields"]) == 1 and not isinstance(first["type"], str):
        return  # the named form, whose reply is the inner struct: as above
    assert reader.read(text) == expected


def test_maps_stay_objects():
    kind = mapping("integer")
    assert as_ddl(kind, kind).read('{"a": 1}') == [("a", 1)]


def test_the_validator_is_loaded_only_where_a_schema_is_given():
    program = (
        "import sys\n"
        "from batch_infer.contract.reply_reader import ReplyReader\n"
        "ReplyReader('string', {'type': 'json_object'}).read('{}')\n"
        "print('jsonschema' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"

"""Prompt templates: text, columns, escapes, and what is refused before any call."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_infer.contract.errors import ConfigError
from batch_infer.spark.job.template import Field, Text, check_columns, parse_template


def test_text_and_columns_alternate():
    assert parse_template("Summarise in one sentence: {body}") == (Text("Summarise in one sentence: "), Field("body"))
    assert parse_template("{a}{b} and {c}.") == (Field("a"), Field("b"), Text(" and "), Field("c"), Text("."))


def test_doubled_braces_are_literal():
    assert parse_template('{{"x": {x}}}') == (Text('{"x": '), Field("x"), Text("}"))
    assert parse_template("{{{x}}}") == (Text("{"), Field("x"), Text("}"))


def test_a_field_of_a_struct_is_a_dotted_path_and_spaces_around_it_do_not_count():
    assert parse_template("{ address.city }") == (Field("address.city"),)


def test_newlines_quotes_and_other_scripts_are_text():
    assert parse_template('é "שלום"\n\t{x}\n') == (Text('é "שלום"\n\t'), Field("x"), Text("\n"))


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("one { brace {x}", "single '{' at character 5"),
        ("one } brace {x}", "single '}' at character 5"),
        ("{x", "single '{' at character 1"),
        ("{x} and {}", "'{}' at character 9 is not a column"),
        ("{x} {  }", "is not a column"),
        ("{x:>10}", "without a format specification"),
        ("{x!r}", "without a format specification"),
        ("no column", "names no column"),
        ("", "names no column"),
        ("{{x}}", "names no column"),
    ],
)
def test_a_malformed_template_is_refused_with_the_place_and_the_way_out(template, words):
    with pytest.raises(ConfigError) as refused:
        parse_template(template)
    assert words in str(refused.value)


@given(st.text())
def test_any_text_is_itself_when_its_braces_are_doubled(text):
    escaped = text.replace("{", "{{").replace("}", "}}")
    parts = parse_template(escaped + "{x}")
    assert "".join(part.text for part in parts[:-1]) == text
    assert parts[-1] == Field("x")


@given(st.text(alphabet="{}ab.:! "))
def test_whatever_is_written_is_parsed_or_refused(template):
    try:
        parts = parse_template(template)
    except ConfigError:
        return
    assert any(isinstance(part, Field) for part in parts)


def test_an_unknown_column_is_refused_with_the_nearest_name_and_all():
    with pytest.raises(ConfigError) as refused:
        check_columns(parse_template("{Boddy}"), ["id", "body", "subject"])
    message = str(refused.value)
    assert "no column 'Boddy'" in message
    assert "Did you mean {body}?" in message
    assert "id, body, subject" in message


def test_columns_are_found_whatever_their_case_and_fields_by_their_struct():
    check_columns(parse_template("{BODY} {address.city} {`odd name`} {a.b}"), ["Body", "Address", "odd name", "a.b"])
    with pytest.raises(ConfigError, match="no column 'adress'"):
        check_columns(parse_template("{adress.city}"), ["address"])

"""modelParameters and responseFormat: what passes as it is, and what is refused before any call."""

import datetime as dt
import decimal
import json

import pytest

from batch_infer.contract.errors import ConfigError
from batch_infer.contract.parameters import check_parameters, near_misses, parse_response_format


def test_parameters_pass_as_they_are_known_or_not():
    given = {
        "max_tokens": 20,
        "temperature": 0.0,
        "stop": ["a", "b"],
        "logit_bias": {"50256": -100},
        "chat_template_kwargs": {"enable_thinking": False},
        "brand_new": None,
    }
    assert check_parameters(given, "chat") == given
    assert check_parameters(None, "chat") == {}


def test_whole_numbers_of_known_names_arrive_whole_although_a_map_made_fractions_of_them():
    given = {"max_tokens": 5.0, "temperature": 1.0, "seed": 7.0, "thinking": {"type": "enabled", "budget_tokens": 4.0}}
    sent = json.dumps(check_parameters(given, "chat"))
    assert sent == json.dumps(
        {"max_tokens": 5, "temperature": 1.0, "seed": 7, "thinking": {"type": "enabled", "budget_tokens": 4}}
    )


def test_parameters_may_be_the_text_of_a_json_object():
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]
    assert check_parameters(json.dumps({"tools": tools, "tool_choice": "auto"}), "chat") == {
        "tools": tools,
        "tool_choice": "auto",
    }
    for text in ("max_tokens=3", "[1]", '"x"', "{"):
        with pytest.raises(ConfigError, match="JSON object as text"):
            check_parameters(text, "chat")


@pytest.mark.parametrize(
    ("given", "meant"),
    [("max_token", "max_tokens"), ("temprature", "temperature"), ("top-p", "top_p"), ("tool_choices", "tool_choice")],
)
def test_a_misspelt_name_passes_and_the_near_one_is_known(given, meant):
    assert check_parameters({given: 1}, "chat") == {given: 1}
    assert near_misses({given: 1, "max_tokens": 2}) == {given: meant}


def test_known_and_quite_different_names_are_no_misspellings():
    names = ["max_tokens", "top_p", "top_k", "n", "stop", "guided_json", "ignore_eos", "user", "seed", "best_of"]
    assert near_misses(dict.fromkeys(names)) == {}


def test_stream_false_passes_and_true_is_refused():
    assert check_parameters({"stream": False, "n": 2}, "chat") == {"stream": False, "n": 2}
    with pytest.raises(ConfigError, match="'stream' can only be false"):
        check_parameters({"stream": True}, "chat")


@pytest.mark.parametrize(
    ("given", "task", "words"),
    [
        ("max_tokens=3", "chat", "expected named values"),
        (["max_tokens"], "chat", "expected named values"),
        ({1: 2}, "chat", "expected named values"),
        ({"": 2}, "chat", "expected named values"),
        ({"model": "x"}, "chat", "'model' cannot be set here"),
        ({"messages": []}, "chat", "made from the request"),
        ({"input": "x"}, "embeddings", "made from the request"),
        ({"prompt": "x"}, "completions", "made from the request"),
        ({"prompt": "x"}, "chat", "completions endpoints are asked with it, and this one's task is 'chat'"),
        ({"messages": []}, "completions", "chat endpoints are asked with it, and this one's task is 'completions'"),
        ({"input": "x"}, "chat", "embeddings endpoints are asked with it"),
        ({"dataframe_records": []}, "custom", "made from the request"),
        ({"thinking": {"budget_tokens": 10}, "max_tokens": 10}, "chat", "must be less than 'max_tokens', which is 10"),
        ({"thinking": {"budget_tokens": 10}, "max_completion_tokens": 9}, "chat", "must be less than 'max_tokens'"),
        ({"thinking": {"budget_tokens": "10"}}, "chat", "at least 1; got '10'"),
        ({"thinking": {"budget_tokens": True}}, "chat", "at least 1; got True"),
        ({"response_format": {}}, "chat", "responseFormat"),
        ({"max_tokens": 0}, "chat", "'max_tokens' is a whole number of at least 1; got 0"),
        ({"max_tokens": 1.5}, "chat", "got 1.5"),
        ({"max_tokens": True}, "chat", "got True"),
        ({"max_tokens": "20"}, "chat", "got '20'. A map makes all its values one type"),
        ({"n": 0}, "chat", "'n' is a whole number"),
        ({"max_completion_tokens": -1}, "chat", "at least 1"),
        ({"temperature": float("nan")}, "chat", "JSON cannot express"),
        ({"a": {"b": [float("inf")]}}, "chat", "'a.b[0]'"),
        ({"when": dt.date(2026, 1, 1)}, "chat", "is a date"),
        ({"t": decimal.Decimal("0.1")}, "chat", "is a Decimal"),
        ({"a": {1: 2}}, "chat", "a key that is not text"),
        ({"max_tokens": 5}, "embeddings", "no 'max_tokens'"),
    ],
)
def test_what_the_product_owns_or_json_cannot_hold_is_refused(given, task, words):
    with pytest.raises(ConfigError) as refused:
        check_parameters(given, task)
    assert str(refused.value).startswith("modelParameters: ")
    assert words in str(refused.value)


def test_a_thinking_budget_below_the_limit_passes_and_a_large_one_is_warned_of(caplog):
    documented = {"max_tokens": 20480, "thinking": {"type": "enabled", "budget_tokens": 10240}}
    assert check_parameters(documented, "chat") == documented
    assert check_parameters({"thinking": {"type": "adaptive"}, "max_tokens": 1}, "chat")
    assert not caplog.records
    check_parameters({"max_tokens": 50000, "thinking": {"type": "enabled", "budget_tokens": 32001}}, "chat")
    assert "32001 is above 32000" in caplog.text


SCHEMA = '{"type":"json_schema","json_schema":{"name":"r","schema":{"type":"object"},"strict":true}}'


@pytest.mark.parametrize("text", ['{"type":"text"}', ' {"type": "json_object"} ', SCHEMA])
def test_the_documented_forms_pass(text):
    assert parse_response_format(text) == json.loads(text)
    assert parse_response_format(json.loads(text)) == json.loads(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("json please", "neither JSON nor a type"),
        ("{", "neither JSON nor a type"),
        ("[]", "unknown form"),
        ("3", "unknown form"),
        ('"text"', "unknown form"),
        ('{"type":"xml"}', "unknown form"),
        ('{"type":"json_schema"}', 'must hold a "name" and a "schema"'),
        ('{"type":"json_schema","json_schema":{"schema":{}}}', 'must hold a "name"'),
        ('{"type":"json_schema","json_schema":{"name":"x","schema":"{}"}}', 'a "schema"'),
        ('{"type":"object","properties":{}}', "bare JSON Schema. Wrap it"),
        ('{"$schema":"x"}', "bare JSON Schema"),
    ],
)
def test_any_other_form_is_refused_with_the_forms_that_exist(text, words):
    with pytest.raises(ConfigError) as refused:
        parse_response_format(text)
    assert str(refused.value).startswith("responseFormat: ")
    assert words in str(refused.value)

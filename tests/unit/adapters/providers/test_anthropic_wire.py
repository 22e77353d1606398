"""Anthropic's wire format: OpenAI-style requests converted, replies in the contract's words, messages kept."""

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_infer.adapters.providers.anthropic import ANTHROPIC
from batch_infer.adapters.providers.anthropic_wire import AnthropicWire
from batch_infer.adapters.providers.calls import check_call, open_wire
from batch_infer.adapters.providers.registry import build_endpoint
from batch_infer.contract.content import canonical_messages
from batch_infer.contract.errors import Ambiguous, ConfigError, JobRejected, RowRejected, Throttled
from batch_infer.contract.reply import ToolCall, Usage
from batch_infer.contract.request import Request

PNG = b"\x89PNG\r\n\x1a\n" + b"0" * 8


def endpoint():
    return build_endpoint("mine", {"provider": "anthropic", "model": "claude-x"})


def wire(*, parameters=None, response_format=None, api_key=None, base_url="https://api.anthropic.com"):
    return AnthropicWire(
        endpoint(),
        ANTHROPIC,
        base_url=base_url,
        parameters=parameters or {},
        response_format=response_format,
        api_key=api_key,
    )


def row(content="hello", files=()):
    return Request(key="k", content=content, files=files)


def body(request=None, **settings):
    return json.loads(wire(**settings).encode([request or row()]))


def of_messages(*messages, **settings):
    return body(row(canonical_messages(messages)), **settings)


def test_address_and_headers():
    assert wire().url == "https://api.anthropic.com/v1/messages"
    assert wire(base_url="http://localhost:1/v1/").url == "http://localhost:1/v1/messages"
    assert wire(base_url="http://localhost:1/anthropic").url == "http://localhost:1/anthropic/v1/messages"
    headers = wire(api_key="secret").headers
    assert headers["x-api-key"] == "secret"
    assert "authorization" not in headers
    assert "x-api-key" not in wire().headers


def test_the_newest_version_is_asked_that_takes_the_parameters():
    assert wire().headers["anthropic-version"] == "2026-10-21"
    for name in ("temperature", "top_p", "top_k"):
        assert wire(parameters={name: 0.5}).headers["anthropic-version"] == "2023-06-01"
    fixed = build_endpoint("mine", {"provider": "anthropic", "model": "m", "api_version": "2023-06-01"})
    made = open_wire(fixed, base_url=fixed.base_url, parameters={}, response_format=None, api_key=None)
    assert made.headers["anthropic-version"] == "2023-06-01"


def test_a_prompt_needs_max_tokens_and_gets_the_default():
    assert body() == {
        "model": "claude-x",
        "max_tokens": 1024,
        "messages": [{"role": "user", "content": "hello"}],
    }


def test_parameters_are_converted_and_others_pass():
    sent = body(
        parameters={
            "max_completion_tokens": 7,
            "stop": "END",
            "n": 1,
            "user": "u-1",
            "temperature": 0.5,
            "thinking": {"type": "enabled", "budget_tokens": 5},
        }
    )
    del sent["messages"]
    assert sent == {
        "model": "claude-x",
        "max_tokens": 7,
        "stop_sequences": ["END"],
        "metadata": {"user_id": "u-1"},
        "temperature": 0.5,
        "thinking": {"type": "enabled", "budget_tokens": 5},
    }
    assert body(parameters={"stop": ["a", "b"], "max_tokens": 3})["stop_sequences"] == ["a", "b"]


FUNCTION = {
    "type": "function",
    "function": {"name": "f", "description": "Does.", "strict": True, "parameters": {"type": "object"}},
}


def test_tools_are_converted_and_those_in_anthropics_form_pass():
    own = {"name": "g", "input_schema": {"type": "object"}, "cache_control": {"type": "ephemeral"}}
    assert body(parameters={"tools": [FUNCTION, own, {"type": "function", "function": {"name": "h"}}]})["tools"] == [
        {"name": "f", "description": "Does.", "strict": True, "input_schema": {"type": "object"}},
        own,
        {"name": "h", "input_schema": {"type": "object", "properties": {}}},
    ]


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"tool_choice": "auto"}, {"type": "auto"}),
        ({"tool_choice": "required"}, {"type": "any"}),
        ({"tool_choice": "none"}, {"type": "none"}),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, {"type": "tool", "name": "f"}),
        ({"tool_choice": {"type": "any"}}, {"type": "any"}),
        ({"parallel_tool_calls": False}, {"type": "auto", "disable_parallel_tool_use": True}),
        (
            {"tool_choice": "required", "parallel_tool_calls": False},
            {"type": "any", "disable_parallel_tool_use": True},
        ),
        ({"parallel_tool_calls": True}, None),
        ({}, None),
    ],
    ids=str,
)
def test_the_choice_of_a_tool_is_converted(parameters, expected):
    assert body(parameters=parameters).get("tool_choice") == expected


def test_a_json_schema_is_the_output_format():
    schema = {"type": "object", "properties": {"x": {"type": "integer"}}}
    form = {"type": "json_schema", "json_schema": {"name": "r", "schema": schema, "strict": True}}
    sent = body(response_format=form, parameters={"output_config": {"effort": "low"}})
    assert sent["output_config"] == {"effort": "low", "format": {"type": "json_schema", "schema": schema}}
    assert "response_format" not in sent
    assert "output_config" not in body(response_format={"type": "text"})


def test_system_messages_are_lifted_out():
    sent = of_messages(
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hi"},
        {"role": "developer", "content": "Be kind."},
    )
    assert sent["system"] == "Be brief.\n\nBe kind."
    assert sent["messages"] == [{"role": "user", "content": "hi"}]
    blocks = [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]
    sent = of_messages({"role": "system", "content": blocks}, {"role": "system", "content": "Kind."})
    assert sent["system"] == [*blocks, {"type": "text", "text": "Kind."}]
    given = {"system": "From the parameters."}
    assert body(parameters=given)["system"] == "From the parameters."
    both = of_messages({"role": "system", "content": "Kind."}, {"role": "user", "content": "x"}, parameters=given)
    assert both["system"] == "From the parameters.\n\nKind."


def test_images_become_base64_sources_and_addresses_stay_addresses():
    encoded = base64.b64encode(PNG).decode()
    sent = body(row("what?", files=(PNG,)))["messages"][0]["content"]
    assert sent == [
        {"type": "text", "text": "what?"},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": encoded}},
    ]
    content = [{"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}]
    sent = of_messages({"role": "user", "content": content})["messages"][0]["content"]
    assert sent == [{"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}}]


def test_tool_calls_and_their_results_are_converted():
    def result(call_id, content):
        return {"role": "tool", "tool_call_id": call_id, "content": content}

    sent = of_messages(
        {"role": "user", "content": "weather?"},
        {
            "role": "assistant",
            "content": "Let me look.",
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}},
                {"id": "c2", "type": "function", "function": {"name": "f", "arguments": "{broken"}},
            ],
        },
        result("c1", "sunny"),
        result("c2", "rain"),
        {"role": "user", "content": "thanks"},
    )["messages"]
    assert sent[1]["content"] == [
        {"type": "text", "text": "Let me look."},
        {"type": "tool_use", "id": "c1", "name": "f", "input": {"x": 1}},
        {"type": "tool_use", "id": "c2", "name": "f", "input": {"arguments": "{broken"}},
    ]
    assert sent[2] == {
        "role": "user",
        "content": [
            {"type": "tool_result", "tool_use_id": "c1", "content": "sunny"},
            {"type": "tool_result", "tool_use_id": "c2", "content": "rain"},
        ],
    }
    assert [turn["role"] for turn in sent] == ["user", "assistant", "user", "user"]


@pytest.mark.parametrize(
    ("parameters", "response_format", "words"),
    [
        ({"n": 2}, None, "'n' can only be 1"),
        ({}, {"type": "json_object"}, "Anthropic has no 'json_object'"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, None, "less than 'max_tokens', which is 1024"),
    ],
)
def test_what_it_cannot_say_is_refused_before_any_call(parameters, response_format, words):
    with pytest.raises(ConfigError, match=words):
        check_call(endpoint(), parameters, response_format)


def test_what_it_can_say_is_not_refused():
    thinking = {"type": "enabled", "budget_tokens": 2000}
    check_call(endpoint(), {"thinking": thinking, "max_tokens": 2001}, None)
    check_call(endpoint(), {"thinking": thinking, "max_completion_tokens": 2001}, {"type": "text"})


# Replies

BLOCKS = (
    b'[{"type":"thinking","thinking":"Hm.","signature":"Eq+/=="},{"type":"redacted_thinking","data":"xyz"},'
    b'{ "type" : "text", "text":"Rayleigh","citations":null},{"type":"text","text":" scattering."}]'
)


def reply_of(content=BLOCKS, stop=b'"end_turn"', usage=b'{"input_tokens":3,"output_tokens":9}', more=b""):
    return (
        b'{"id":"msg_1","type":"message","role":"assistant","model":"claude-x-1","content":' + content
        + b',"stop_reason":' + stop + b',"stop_sequence":null,"usage":' + usage + more + b"}"
    )  # fmt: skip


def read(data):
    (result,) = wire().decode(data, [row()])
    return result


def test_a_reply_is_read_in_full():
    usage = (
        b'{"input_tokens":3,"cache_read_input_tokens":20,"cache_creation_input_tokens":7,"output_tokens":9,'
        b'"output_tokens_details":{"thinking_tokens":5}}'
    )
    reply = read(reply_of(usage=usage))
    assert (reply.text, reply.reasoning, reply.finish_reason, reply.model) == (
        "Rayleigh scattering.", "Hm.", "stop", "claude-x-1",
    )  # fmt: skip
    assert reply.usage == Usage(30, 9, 39, 20, 5)
    assert reply.message == '{"role":"assistant","content":' + BLOCKS.decode() + "}"


def test_the_message_of_a_reply_goes_back_unmodified():
    message = json.loads(read(reply_of()).message)
    turns = [{"role": "user", "content": "why?"}, message, {"role": "user", "content": "simpler?"}]
    sent = body(row(json.dumps(turns).encode()))
    assert sent["messages"][1] == {"role": "assistant", "content": json.loads(BLOCKS)}


def test_tool_calls_alone_are_a_reply_with_empty_text():
    content = b'[{"type":"tool_use","id":"t1","name":"f","input":{"x": 1.50}},{"type":"tool_use","id":"t2","name":"g"}]'
    reply = read(reply_of(content, b'"tool_use"'))
    assert (reply.text, reply.finish_reason) == ("", "tool_calls")
    assert reply.tool_calls == (ToolCall("t1", "f", '{"x": 1.50}'), ToolCall("t2", "g", "{}"))


@pytest.mark.parametrize(
    ("stop", "finish_reason"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("pause_turn", "pause_turn"),
        (None, None),
    ],
)
def test_the_reason_is_one_of_the_contracts_words(stop, finish_reason):
    assert read(reply_of(stop=json.dumps(stop).encode())).finish_reason == finish_reason


@pytest.mark.parametrize(
    ("content", "stop", "more", "kind", "words"),
    [
        (b"[]", b'"end_turn"', b"", "empty_reply", "no text"),
        (b"null", b'"end_turn"', b"", "empty_reply", "no text"),
        (b'[{"type":"thinking","thinking":"long"}]', b'"max_tokens"', b"", "empty_reply", "raise max_tokens"),
        (b"[]", b'"refusal"', b"", "content_filter", "withheld"),
        (BLOCKS, b'"refusal"', b"", "content_filter", "withheld"),
        (b"[]", b'"refusal"', b',"stop_details":{"type":"refusal","explanation":"Cyber."}', "content_filter", "Cyber."),
    ],
)
def test_a_reply_without_an_answer_is_that_rows_error(content, stop, more, kind, words):
    error = read(reply_of(content, stop, more=more))
    assert type(error) is RowRejected
    assert (error.kind, error.status, error.usage) == (kind, 200, Usage(3, 9, 12))
    assert words in error.message


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (b"null", Usage()),
        (b'{"input_tokens":-1,"output_tokens":-1}', Usage()),
        (b'{"input_tokens":"3"}', Usage()),
        (b'{"input_tokens":3}', Usage(3, None, 3)),
        (b'{"input_tokens":NaN,"output_tokens":2}', Usage(None, 2, None)),
    ],
    ids=str,
)
def test_usage_is_unknown_rather_than_wrong(usage, expected):
    assert read(reply_of(usage=usage)).usage == expected


@pytest.mark.parametrize(
    ("kind", "cls"),
    [("overloaded_error", Throttled), ("billing_error", JobRejected), ("api_error", Ambiguous)],
)
def test_an_error_in_a_200_is_what_its_type_says(kind, cls):
    with pytest.raises(cls):
        read(json.dumps({"type": "error", "error": {"type": kind, "message": "x"}}).encode())


@given(st.binary(max_size=200))
def test_any_body_is_a_result_or_an_error_of_ours(data):
    try:
        result = read(data)
    except Ambiguous:
        return
    assert type(result) is RowRejected

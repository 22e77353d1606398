"""The OpenAI-compatible wire format: bodies as documented, replies read, and every faulty reply an error of its own."""

import base64
import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_infer.adapters.providers.openai import OPENAI
from batch_infer.adapters.providers.openai_wire import PATHS, OpenAIWire
from batch_infer.adapters.providers.registry import build_endpoint
from batch_infer.contract.content import canonical_messages
from batch_infer.contract.errors import Ambiguous, JobRejected, RowRejected
from batch_infer.contract.reply import ToolCall, Usage
from batch_infer.contract.request import Request

PNG = b"\x89PNG\r\n\x1a\n" + b"0" * 8


def wire(task="chat", *, parameters=None, response_format=None, api_key=None, base_url="http://localhost:1/v1"):
    endpoint = build_endpoint("mine", {"base_url": "http://localhost/v1", "model": "m", "task": task})
    return OpenAIWire(
        endpoint,
        OPENAI,
        base_url=base_url,
        parameters=parameters or {},
        response_format=response_format,
        api_key=api_key,
    )


def row(content="hello", files=(), tokens=1):
    return Request(key="k", content=content, files=files, prompt_tokens=tokens)


def body(request, **settings):
    return json.loads(wire(**settings).encode([request]))


def test_addresses_are_the_documented_paths():
    assert wire().url == "http://localhost:1/v1/chat/completions"
    assert wire("completions", base_url="http://localhost:1/v1/").url == "http://localhost:1/v1/completions"
    assert wire("embeddings").url == "http://localhost:1/v1/embeddings"


def test_the_key_goes_into_one_header_and_is_left_out_without_one():
    assert wire(api_key="secret").headers["authorization"] == "Bearer secret"
    assert "authorization" not in wire().headers
    assert wire().headers["content-type"] == "application/json"


def test_a_prompt_is_one_message_of_the_user():
    assert body(row('a "quoted" line\n💥')) == {
        "model": "m",
        "messages": [{"role": "user", "content": 'a "quoted" line\n💥'}],
    }


def test_parameters_and_the_response_format_stand_beside_it():
    sent = body(row(), parameters={"max_tokens": 5, "temperature": 0.0}, response_format={"type": "json_object"})
    assert sent == {
        "model": "m",
        "max_tokens": 5,
        "temperature": 0.0,
        "response_format": {"type": "json_object"},
        "messages": [{"role": "user", "content": "hello"}],
    }


def test_messages_are_sent_as_they_are():
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "x"}]},
    ]
    assert body(row(canonical_messages(messages)))["messages"] == messages


def image(data, kind="image/png"):
    return {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{base64.b64encode(data).decode()}"}}


def test_files_are_image_blocks_after_the_text():
    sent = body(row("what is this?", files=(PNG, b"\xff\xd8\xff0", b"GIF89a", b"RIFF0000WEBP", b"?")))
    assert sent["messages"] == [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "what is this?"},
                image(PNG),
                image(b"\xff\xd8\xff0", "image/jpeg"),
                image(b"GIF89a", "image/gif"),
                image(b"RIFF0000WEBP", "image/webp"),
                image(b"?", "application/octet-stream"),
            ],
        }
    ]


def test_files_beside_messages_join_the_last_one_of_the_user():
    messages = [
        {"role": "user", "content": "first"},
        {"role": "user", "content": "second"},
        {"role": "assistant", "content": "yes"},
    ]
    sent = body(row(canonical_messages(messages), files=(PNG,)))["messages"]
    assert sent == [
        messages[0],
        {"role": "user", "content": [{"type": "text", "text": "second"}, image(PNG)]},
        messages[2],
    ]
    blocks = [{"role": "user", "content": [{"type": "text", "text": "a"}]}]
    sent = body(row(canonical_messages(blocks), files=(PNG,)))["messages"]
    assert sent == [{"role": "user", "content": [{"type": "text", "text": "a"}, image(PNG)]}]
    sent = body(row(canonical_messages([{"role": "system", "content": "s"}]), files=(PNG,)))["messages"]
    assert sent[1:] == [{"role": "user", "content": [image(PNG)]}]


def test_completions_and_embeddings_bodies():
    assert body(row(), task="completions", parameters={"n": 2}) == {"model": "m", "n": 2, "prompt": "hello"}
    packed = json.loads(wire("embeddings", parameters={"dimensions": 8}).encode([row("a"), row("b")]))
    assert packed == {"model": "m", "dimensions": 8, "input": ["a", "b"]}
    assert json.loads(wire("embeddings").encode([row([1, 2, 3])]))["input"] == [[1, 2, 3]]


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_prompt_arrives_as_it_is(prompt):
    assert body(row(prompt))["messages"][0]["content"] == prompt
    assert json.loads(wire("embeddings").encode([row(prompt)]))["input"] == [prompt]


# Replies


def chat(message=None, *, finish="stop", **more):
    choice = {"index": 0, "message": message or {"role": "assistant", "content": "hi"}, "finish_reason": finish}
    return {
        "model": "m-1",
        "choices": [choice],
        "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4},
        **more,
    }


def read(reply, *, task="chat", rows=None):
    data = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
    return wire(task).decode(data, rows or [row()])


def only(reply, **settings):
    (result,) = read(reply, **settings)
    return result


def test_a_reply_is_read_in_full():
    usage = {
        "prompt_tokens": 30,
        "completion_tokens": 9,
        "total_tokens": 39,
        "prompt_tokens_details": {"cached_tokens": 20, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 5},
    }
    message = {"role": "assistant", "content": "hi", "reasoning_content": "hm", "annotations": []}
    reply = only(chat(message, usage=usage, id="x", system_fingerprint=None))
    assert (reply.text, reply.reasoning, reply.finish_reason, reply.model) == ("hi", "hm", "stop", "m-1")
    assert reply.usage == Usage(30, 9, 39, 20, 5)
    assert json.loads(reply.message) == message
    assert reply.choices == ()


def test_the_message_is_kept_byte_for_byte():
    raw = b'{ "content" : "hi",  "role":"assistant", "x":1.50 }'
    assert only(b'{"choices":[{"message":' + raw + b"}]}").message == raw.decode()


def test_all_choices_are_kept_when_there_are_several():
    reply = chat()
    reply["choices"] = [{"message": {"content": text}, "finish_reason": "stop"} for text in ("a", "b", None)]
    assert only(reply).text == "a"
    assert only(reply).choices == ("a", "b", "")


def test_content_in_blocks_is_joined_and_its_reasoning_kept_apart():
    blocks = [
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "because"}]},
        {"type": "text", "text": "a"},
        {"type": "text", "text": "b"},
    ]
    reply = only(chat({"content": blocks}))
    assert (reply.text, reply.reasoning) == ("ab", "because")


@pytest.mark.parametrize(
    ("message", "text", "reasoning"),
    [
        ({"content": "hi", "reasoning_content": "hm"}, "hi", "hm"),
        ({"content": "hi", "reasoning": "hm"}, "hi", "hm"),
        ({"content": "hi", "reasoning": {"effort": "low"}}, "hi", None),
        ({"content": "<think>hm</think>hi"}, "hi", "hm"),
        ({"content": "\n<think>\nhm\nhm\n</think>\n\nhi <think>x</think>"}, "hi <think>x</think>", "hm\nhm"),
        ({"content": "<think></think>hi"}, "hi", None),
        ({"content": "<think>inner</think>hi", "reasoning_content": "hm"}, "hi", "hm"),
        ({"content": "hi <think>hm</think>"}, "hi <think>hm</think>", None),
        ({"content": "<think>never closed"}, "<think>never closed", None),
        ({"content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "hi"}]}, "hi", "hm"),
        (
            {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"text": "hi"}]},
            "hi",
            "hm",
        ),
        ({"content": [{"type": "reasoning", "summary": [], "text": "x"}, {"type": "text", "text": "hi"}]}, "hi", None),
    ],
    ids=str,
)
def test_reasoning_is_told_from_the_answer_in_every_form(message, text, reasoning):
    reply = only(chat(message))
    assert (reply.text, reply.reasoning) == (text, reasoning)
    assert json.loads(reply.message) == message


def test_reasoning_that_the_token_limit_cut_off_is_no_answer():
    assert only(chat({"content": "<think>so far"}, finish="length")).kind == "empty_reply"
    assert only(chat({"content": "<think>done</think>"}, finish="length")).kind == "empty_reply"


def test_each_choice_is_freed_of_its_reasoning():
    reply = chat()
    reply["choices"] = [{"message": {"content": f"<think>{i}</think>a{i}"}, "finish_reason": "stop"} for i in range(2)]
    assert only(reply).choices == ("a0", "a1")


def test_a_completions_text_is_left_as_it_is():
    reply = {"choices": [{"text": "<think>a</think>b", "finish_reason": "stop"}]}
    assert only(reply, task="completions").text == "<think>a</think>b"


def test_the_older_function_call_is_a_tool_call():
    call = {"name": "f", "arguments": '{"x": 1}'}
    reply = only(chat({"content": None, "function_call": call}, finish="function_call"))
    assert (reply.text, reply.tool_calls) == ("", (ToolCall(None, "f", '{"x": 1}'),))


def test_deepseeks_cached_tokens_are_cached_tokens():
    usage = {"prompt_tokens": 30, "completion_tokens": 1, "total_tokens": 31, "prompt_cache_hit_tokens": 20}
    assert only(chat(usage=usage)).usage == Usage(30, 1, 31, 20)


def test_tool_calls_alone_are_a_reply_with_empty_text():
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    reply = only(chat({"role": "assistant", "content": None, "tool_calls": [call]}, finish="tool_calls"))
    assert reply.text == ""
    assert reply.tool_calls == (ToolCall("c1", "f", '{"x": 1}'),)
    call["function"]["arguments"] = {"x": 1}  # some servers send an object
    assert only(chat({"content": "", "tool_calls": [call]})).tool_calls[0].arguments == '{"x":1}'


def test_a_completions_reply():
    reply = {"model": "m", "choices": [{"text": "hi", "finish_reason": "length"}], "usage": None}
    found = only(reply, task="completions")
    assert (found.text, found.finish_reason, found.message, found.usage) == ("hi", "length", None, Usage())


def test_a_reply_cut_at_the_token_limit_is_a_reply_and_says_so():
    reply = only(chat({"content": "half a sen"}, finish="length"))
    assert (reply.text, reply.finish_reason) == ("half a sen", "length")


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (None, Usage()),
        ({}, Usage()),
        ("many", Usage()),
        ([1], Usage()),
        ({"prompt_tokens": -5, "completion_tokens": -5, "total_tokens": -5}, Usage()),
        ({"prompt_tokens": "3"}, Usage()),
        ({"prompt_tokens": 3}, Usage(3, None, 3)),
        ({"prompt_tokens": 3, "completion_tokens": 2}, Usage(3, 2, 5)),
        ({"prompt_tokens": 3, "total_tokens": -1, "prompt_tokens_details": None}, Usage(3, None, 3)),
    ],
    ids=str,
)
def test_usage_is_unknown_rather_than_wrong(usage, expected):
    assert only(chat(usage=usage)).usage == expected


def test_a_missing_usage_is_unknown():
    reply = chat()
    del reply["usage"]
    assert only(reply).usage == Usage()


def test_a_nan_in_the_usage_does_not_lose_the_reply():
    text = json.dumps(chat()).replace('"prompt_tokens": 3', '"prompt_tokens": NaN')
    reply = only(text.encode())
    assert reply.text == "hi"
    assert reply.usage.prompt_tokens is None
    assert reply.usage.completion_tokens == 1


def test_half_a_surrogate_pair_becomes_a_replacement_character():
    reply = only(json.dumps(chat({"content": "cut \ud83d"})).encode())
    assert reply.text == "cut \ufffd"
    assert only(json.dumps(chat({"content": "whole \U0001f4a5"})).encode()).text == "whole \U0001f4a5"


@pytest.mark.parametrize(
    ("message", "finish", "kind", "words"),
    [
        ({"role": "assistant", "content": None}, "stop", "empty_reply", "no text"),
        ({"role": "assistant", "content": ""}, "stop", "empty_reply", "no text"),
        ({}, "stop", "empty_reply", "no text"),
        ({"content": []}, "stop", "empty_reply", "no text"),
        ({"content": None}, "length", "empty_reply", "raise max_tokens"),
        ({"content": None, "reasoning_content": "long thoughts"}, "length", "empty_reply", "raise max_tokens"),
        ({"content": None}, "content_filter", "content_filter", "content filter"),
        ({"content": None, "refusal": "I will not."}, "stop", "refusal", "I will not."),
    ],
    ids=str,
)
def test_a_reply_without_text_is_that_rows_error(message, finish, kind, words):
    reply = chat()
    reply["choices"][0] |= {"message": message, "finish_reason": finish}
    error = only(reply)
    assert type(error) is RowRejected
    assert (error.kind, error.status, error.usage) == (kind, 200, Usage(3, 1, 4))
    assert words in error.message
    assert "'mine'" in error.message


def test_no_choices_are_an_empty_reply():
    for reply in (chat(choices=[]), chat(choices=None), {"usage": None}):
        assert only(reply).kind == "empty_reply"
    assert only(b'{"choices":[{"finish_reason":"stop"}]}').kind == "empty_reply"
    assert only(b'{"choices":[{"message":null}]}').kind == "empty_reply"
    assert only(b'{"choices":[{"text":""}]}', task="completions").kind == "empty_reply"


WHOLE = json.dumps(chat()).encode()
UNREADABLE = {
    "truncated": WHOLE[: len(WHOLE) // 2],
    "empty": b"",
    "html": b"<!doctype html><html></html>",
    "array": b"[]",
    "text": b'"hi"',
    "two_documents": WHOLE + WHOLE,
    "nan_and_truncated": b'{"model":NaN',
    "deep": b'{"error":' + b"[" * 100_000,
}
UNREADABLE_CHATS = {
    "invalid_utf8": WHOLE.replace(b"hi", b"h\xff\xfe"),
    "choices_object": b'{"choices":{}}',
    "null_choice": b'{"choices":[null]}',
    "message_text": b'{"choices":[{"message":"hi"}]}',
    "content_number": b'{"choices":[{"message":{"content":5}}]}',
}
CASES = {f"{task}-{name}": (task, data) for name, data in UNREADABLE.items() for task in PATHS}
CASES |= {name: ("chat", data) for name, data in UNREADABLE_CHATS.items()}


@pytest.mark.parametrize(("task", "data"), CASES.values(), ids=CASES)
def test_a_200_that_cannot_be_read_may_have_been_billed(task, data):
    with pytest.raises(Ambiguous) as raised:
        read(data, task=task)
    assert raised.value.kind == "malformed_reply"
    assert "may have been billed" in raised.value.message
    assert "base_url" in raised.value.message


def test_an_error_object_in_a_200_is_the_error_that_it_says():
    with pytest.raises(Ambiguous, match="The model crashed"):
        read({"error": {"message": "The model crashed.", "type": "server_error"}})
    with pytest.raises(JobRejected):
        read({"error": {"code": 401, "message": "No."}, "choices": []})
    with pytest.raises(Ambiguous, match="crashed"):
        read({"error": "It crashed."}, task="embeddings")


@given(st.binary(max_size=200))
def test_any_body_is_a_result_or_an_error_of_ours(data):
    for task in ("chat", "completions", "embeddings"):
        try:
            (result,) = read(data, task=task)
        except Ambiguous:
            continue
        assert type(result) is RowRejected


# Embeddings


def vectors(*items, usage=12):
    data = [{"object": "embedding", "index": i, "embedding": vector} for i, vector in items]
    return {"model": "e", "data": data, "usage": {"prompt_tokens": usage, "total_tokens": usage}}


ROWS = [row("a", tokens=1), row("b", tokens=2), row("c", tokens=3)]


def embeddings(reply):
    return read(reply, task="embeddings", rows=ROWS)


def test_vectors_go_to_their_rows_whatever_their_order():
    reply = vectors((2, [3.0, 3.0]), (0, [1.0, 1.0]), (1, [2.0, 2.0]))
    results = embeddings(reply)
    assert [result.embedding for result in results] == [[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]]
    assert [result.usage.prompt_tokens for result in results] == [2, 4, 6]
    assert {result.model for result in results} == {"e"}


def test_vectors_without_an_index_are_in_the_rows_order():
    reply = vectors((0, [1]), (1, [2]), (2, [3]))
    for item in reply["data"]:
        del item["index"]
    assert [result.embedding for result in embeddings(reply)] == [[1.0], [2.0], [3.0]]


def test_base64_vectors_are_read():
    values = [0.5, -1.25, 3.0]
    text = base64.b64encode(struct.pack("<3f", *values)).decode()
    results = embeddings(vectors((0, text), (1, text), (2, values)))
    assert [result.embedding for result in results] == [values] * 3


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (vectors((0, [1]), (1, [2])), "3 texts were sent and 2 vectors came back"),
        (vectors(), "3 texts were sent and 0 vectors came back"),
        (vectors((0, [1]), (1, [2]), (1, [3])), "index 1 is repeated"),
        (vectors((0, [1]), (1, [2]), (3, [3])), "index 3 is repeated or out of range"),
        (vectors((0, [1]), (1, [2]), (-1, [3])), "out of range"),
        (vectors((0, [1]), (1, [2]), (2, [3]), (3, [4])), "out of range"),
        (vectors((0, [1, 2]), (1, [2, 3]), (2, [3])), "differ in length"),
        ({"data": None}, "0 vectors came back"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_vectors_that_cannot_be_matched_with_their_rows_are_no_result(reply, words):
    with pytest.raises(Ambiguous) as raised:
        embeddings(reply)
    assert raised.value.kind == "malformed_reply"
    assert words in raised.value.message


@pytest.mark.parametrize("vector", ["not base64!", "AAA=", ["x"], [None], None, 5, {}], ids=str)
def test_a_vector_that_is_none_is_no_result(vector):
    with pytest.raises(Ambiguous) as raised:
        embeddings(vectors((0, vector), (1, [1]), (2, [1])))
    assert raised.value.kind == "malformed_reply"


def test_an_empty_vector_is_its_own_rows_error():
    results = embeddings(vectors((0, [1.0]), (1, []), (2, [3.0])))
    assert [type(result).__name__ for result in results] == ["Reply", "RowRejected", "Reply"]
    assert results[1].kind == "empty_reply"
    assert sum(result.usage.prompt_tokens for result in results) == 12

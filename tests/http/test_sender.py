"""One attempt over real HTTP and in memory: what each fault of an endpoint becomes, and that no error holds the key."""

import asyncio
import json

import pytest

from batch_infer.adapters.providers.openai import OPENAI
from batch_infer.adapters.providers.openai_wire import OpenAIWire
from batch_infer.adapters.providers.registry import build_endpoint
from batch_infer.adapters.transport import HttpReply
from batch_infer.adapters.transport.choose import open_transport
from batch_infer.adapters.worker.sender import Sender
from batch_infer.contract.errors import (
    Ambiguous,
    EndpointError,
    JobRejected,
    RowRejected,
    Throttled,
    Transient,
    WrongReply,
)
from batch_infer.contract.reply import Reply
from batch_infer.contract.reply_reader import ReplyReader
from batch_infer.contract.request import Request
from batch_infer.testing import FakeTransport, FaultEndpoint, Rule, embedding, json_reply

KEY = "a-key-of-no-known-shape-1"


def row(text="hello"):
    return Request(key="k", content=text, prompt_tokens=1)


def sender(transport, *, base_url="http://localhost:1/v1", task="chat", result_type="string", timeout_s=5):
    endpoint = build_endpoint("mine", {"base_url": base_url, "model": "m", "task": task, "timeout_s": timeout_s})
    wire = OpenAIWire(endpoint, OPENAI, base_url=base_url, parameters={}, response_format=None, api_key=KEY)
    return Sender(endpoint, wire, transport, ReplyReader(result_type), secrets=(KEY,))


def ask(endpoint, *rows, **settings):
    """One attempt over a connection of its own; the raised error stands for all rows."""

    async def main():
        transport = open_transport(None, connect_timeout_s=2, max_connections=None, ca_file=None)
        try:
            return await sender(transport, base_url=endpoint.base_url, **settings)(rows or [row()])
        except EndpointError as error:
            return [error]
        finally:
            await transport.close()

    return asyncio.run(main())


def in_memory(*steps, rows=None, **settings):
    transport = FakeTransport(list(steps))
    try:
        return asyncio.run(sender(transport, **settings)(rows or [row()]))
    except EndpointError as error:
        return [error]


@pytest.fixture(scope="module")
def faulty():
    with FaultEndpoint(api_key=KEY) as endpoint:
        yield endpoint


def chat_fault(faulty, **rule):
    faulty.configure(rules=[Rule(**rule)])
    (result,) = ask(faulty, timeout_s=1)
    if isinstance(result, EndpointError):
        assert KEY not in str(result)
        assert "'mine'" in result.message or result.status is None
    return result


def test_a_good_reply(faulty):
    faulty.configure(rules=[])
    (result,) = ask(faulty, row("a b"))
    assert (result.text, result.usage.prompt_tokens, result.model) == ("echo: a b", 2, "m")


@pytest.mark.parametrize(
    ("fault", "cls", "kind"),
    [
        ("truncated_json", Ambiguous, "malformed_reply"),
        ("html_200", Ambiguous, "malformed_reply"),
        ("empty_body", Ambiguous, "malformed_reply"),
        ("invalid_utf8", Ambiguous, "malformed_reply"),
        ("error_in_200", Ambiguous, "error_in_reply"),
        ("empty_choices", RowRejected, "empty_reply"),
        ("null_content", RowRejected, "empty_reply"),
        ("content_filter", RowRejected, "content_filter"),
        ("redirect", JobRejected, "redirect"),
        ("stall", Ambiguous, "timeout"),
        ("slowloris", Ambiguous, "timeout"),
        ("stall_mid_body", Ambiguous, "timeout"),
    ],
)
def test_each_fault_of_a_chat_endpoint_is_an_error_of_its_class(faulty, fault, cls, kind):
    result = chat_fault(faulty, fault=fault)
    assert type(result) is cls
    assert result.kind == kind


@pytest.mark.parametrize("fault", ["reset_before_reply", "close_before_reply", "reset_mid_body", "close_mid_body"])
def test_a_connection_that_ends_after_the_request_was_sent_may_have_been_billed(faulty, fault):
    assert type(chat_fault(faulty, fault=fault)) is Ambiguous


@pytest.mark.parametrize(
    "fault",
    ["missing_usage", "nan_usage", "negative_usage", "length", "lone_surrogate", "wrong_content_type", "gzip"],
)
def test_what_can_be_read_is_a_reply(faulty, fault):
    result = chat_fault(faulty, fault=fault)
    assert type(result) is Reply
    assert result.text.startswith("echo:")
    assert result.usage.prompt_tokens in (None, 1)


@pytest.mark.parametrize(
    ("status", "cls"),
    [(400, RowRejected), (401, JobRejected), (404, JobRejected), (429, Throttled), (500, Transient), (529, Throttled)],
)
def test_each_status_is_an_error_of_its_class(faulty, status, cls):
    result = chat_fault(faulty, status=status, headers={"retry-after": "3", "x-request-id": "r-1"})
    assert type(result) is cls
    assert (result.status, result.request_id) == (status, "r-1")
    if cls is Throttled:
        assert result.retry_after_s == 3


ROWS = [row(text) for text in "abc"]


@pytest.mark.parametrize("fault", ["short_batch", "duplicate_index", "wrong_dimension", "empty_choices"])
def test_vectors_that_cannot_be_matched_are_no_result(faulty, fault):
    faulty.configure(rules=[Rule(fault=fault)])
    (error,) = ask(faulty, *ROWS, task="embeddings")
    assert type(error) is Ambiguous
    assert error.kind == "malformed_reply"


@pytest.mark.parametrize("fault", [None, "out_of_order", "missing_index", "base64", "missing_usage", "nan_usage"])
def test_vectors_that_can_be_matched_are_each_rows_own(faulty, fault):
    # Without an index the order of the reply is all there is, so this fault leaves it alone.
    faulty.configure(rules=[Rule(fault=fault)] if fault else [])
    results = ask(faulty, *ROWS, task="embeddings")
    assert [result.embedding for result in results] == [pytest.approx(embedding(r.content), rel=1e-6) for r in ROWS]


def test_a_wrong_key_is_a_job_error_without_the_key():
    with FaultEndpoint(api_key="another") as endpoint:
        (error,) = ask(endpoint)
    assert type(error) is JobRejected
    assert error.kind == "authentication"
    assert KEY not in str(error)


@pytest.mark.parametrize(
    "reply",
    [
        HttpReply(401, {}, f"Wrong key {KEY}.".encode()),
        json_reply({"error": {"message": f"Wrong key {KEY}."}}, 401),
        json_reply({"error": {"message": "x" * 190 + KEY}}, 400),
        json_reply({"error": {"message": f"Wrong key {KEY}."}}),
        json_reply({"error": {"code": 403, "message": f"Wrong key {KEY}."}}),
    ],
    ids=str,
)
def test_an_endpoint_that_repeats_the_key_does_not_bring_it_into_a_message(reply):
    (error,) = in_memory(reply)
    assert KEY[:8] not in str(error)
    assert KEY[:8] not in repr(error)
    assert error.message == str(error)


def chat(text, **message):
    return json_reply(
        {
            "choices": [{"message": {"content": text, **message}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5},
        }
    )


def test_a_reply_of_another_type_is_that_rows_error_and_its_usage_is_kept():
    (error,) = in_memory(chat("three"), result_type="integer")
    assert type(error) is WrongReply
    assert (error.kind, error.usage.total_tokens) == ("type_mismatch", 5)
    assert error.message.endswith("holds no JSON. To make the endpoint keep to the type, add responseFormat => 'INT'.")
    assert (error.reply.text, json.loads(error.reply.message)["content"]) == ("three", "three")
    assert "holds no JSON" in error.correction
    assert in_memory(chat(" 3 "), result_type="integer")[0].text == " 3 "
    assert in_memory(chat("null"), result_type="integer")[0].kind == "type_mismatch"


def test_every_choice_must_have_the_type():
    reply = {"choices": [{"message": {"content": text}} for text in ("1", "two")]}
    (error,) = in_memory(json_reply(reply), result_type="integer")
    assert (error.kind, error.reply.text) == ("type_mismatch", "two")
    assert json.loads(error.reply.message) == {"role": "assistant", "content": "two"}


def test_a_reply_that_was_cut_off_is_not_asked_for_again():
    body = {"choices": [{"message": {"content": '{"a":'}, "finish_reason": "length"}]}
    (error,) = in_memory(json_reply(body), result_type="integer")
    assert "raise max_tokens" in error.message
    assert error.correction is None


def test_a_text_completion_has_no_conversation_to_mend_it_in():
    (error,) = in_memory(json_reply({"choices": [{"text": "three"}]}), result_type="integer", task="completions")
    assert type(error) is WrongReply
    assert error.correction is None
    assert json.loads(error.reply.message)["content"] == "three"


def test_one_attempt_is_one_request():
    transport = FakeTransport([HttpReply(500, {}, b""), HttpReply(200, {}, b"")])
    with pytest.raises(Transient):
        asyncio.run(sender(transport)([row()]))
    assert len(transport.requests) == 1
    assert transport.requests[0].url == "http://localhost:1/v1/chat/completions"
    assert transport.requests[0].headers["authorization"] == f"Bearer {KEY}"
    assert transport.requests[0].timeout_s == 5


def test_any_2xx_is_a_reply():
    assert in_memory(chat("x")._replace(status=201))[0].text == "x"


def test_of_several_choices_with_tool_calls_the_texts_are_checked():
    called = {"message": {"content": None, "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "{}"}}]}}

    def choices(text):
        return json_reply({"choices": [called, {"message": {"content": text}}, called]})

    (reply,) = in_memory(choices("7"), result_type="integer")
    assert reply.choices == ("", "7", "")
    (wrong,) = in_memory(choices("seven"), result_type="integer")
    assert isinstance(wrong, WrongReply)


def test_a_refusal_and_an_escaped_error_do_not_hold_the_key(monkeypatch):
    shapeless = "zx9q81secret"
    monkeypatch.setitem(globals(), "KEY", shapeless)
    refusal = {"choices": [{"message": {"content": None, "refusal": f"not with {shapeless}"}}]}
    (refused,) = in_memory(json_reply(refusal))
    assert (refused.kind, shapeless in str(refused)) == ("refusal", False)
    escaped = "".join(f"\\u{ord(character):04x}" for character in shapeless)
    (wrong,) = in_memory(HttpReply(400, {}, f'{{"error": {{"message": "bad {escaped}"}}}}'.encode()))
    assert "bad [redacted]" in str(wrong)

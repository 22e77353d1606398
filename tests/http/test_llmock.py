"""Against llmock, a server that others wrote: each kind that it speaks, and its verdict on how we take its faults."""

import json
import sys
from pathlib import Path

import pytest

from tests.support.servers_of_others import free_port, http, run, running


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [Path(sys.executable).with_name("llmock"), "serve", "--port", str(port), "--response-style", "echo"]
    with running(command, f"{url}/_llmock/verdict", tmp_path_factory.mktemp("llmock") / "log"):
        yield url


@pytest.fixture
def llmock(address):
    http("POST", f"{address}/_llmock/reset")
    return address


def script(llmock, *behaviours):
    http("POST", f"{llmock}/_llmock/scenario", {"behaviors": list(behaviours)})


def verdict(llmock):
    return http("GET", f"{llmock}/_llmock/verdict")


@pytest.fixture(params=["openai", "anthropic"])
def fields(request, llmock):
    if request.param == "anthropic":
        return {"provider": "anthropic", "base_url": f"{llmock}/anthropic"}
    return {"base_url": f"{llmock}/v1"}


TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def test_chat(process, llmock, fields):
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello there"}]
    (outcome,) = run(process, [asked], **fields)
    assert "hello there" in outcome.reply.text
    assert outcome.reply.finish_reason == "stop"
    assert outcome.reply.model == "m"
    assert outcome.usage.total_tokens == outcome.usage.prompt_tokens + outcome.usage.completion_tokens > 0
    assert verdict(llmock)["attempts"] == 1


def test_several_choices(process, llmock):
    (outcome,) = run(process, ["hello"], parameters={"n": 3}, base_url=f"{llmock}/v1")
    assert len(outcome.reply.choices) == 3
    assert outcome.reply.choices[0] == outcome.reply.text


def test_a_tool_call_and_the_turn_after_it(process, llmock, fields):
    question = {"role": "user", "content": "The weather in Paris?"}
    (first,) = run(process, [[question]], parameters={"tools": [TOOL]}, **fields)
    (call,) = first.reply.tool_calls
    assert (first.reply.text, first.reply.finish_reason, call.name) == ("", "tool_calls", "get_weather")
    assert list(json.loads(call.arguments)) == ["city"]
    message = json.loads(first.reply.message)
    answer = {"role": "tool", "tool_call_id": call.id, "content": "21 C"}
    (second,) = run(process, [[question, message, answer]], parameters={"tools": [TOOL]}, **fields)
    assert second.reply.tool_calls == ()
    assert second.reply.text


def test_a_tool_call_whose_arguments_are_no_json_is_kept_as_it_is(process, llmock):
    script(llmock, {"type": "tool_fault", "kind": "malformed_arguments"})
    given = {"tools": [TOOL], "tool_choice": "required"}
    (outcome,) = run(process, ["weather?"], parameters=given, base_url=f"{llmock}/v1")
    (call,) = outcome.reply.tool_calls
    assert call.name == "get_weather"
    with pytest.raises(ValueError):
        json.loads(call.arguments)


def test_structured_output(process, llmock):
    schema = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
    form = {"type": "json_schema", "json_schema": {"name": "r", "schema": schema, "strict": True}}
    (outcome,) = run(process, ["x?"], response_format=form, base_url=f"{llmock}/v1")
    assert isinstance(json.loads(outcome.reply.text)["x"], int)


def test_a_reasoning_block_at_the_beginning(process, llmock, fields):
    script(llmock, {"type": "reply", "text": "<think>21 or so</think>Mild."})
    (outcome,) = run(process, ["weather?"], **fields)
    if fields.get("provider") == "anthropic":  # whose thinking is a block of its own: this is the model's own text
        assert outcome.reply.text == "<think>21 or so</think>Mild."
    else:
        assert (outcome.reply.text, outcome.reply.reasoning) == ("Mild.", "21 or so")


def test_embeddings_are_packed(process, llmock):
    texts = [f"text {i}" for i in range(10)]
    given = {"task": "embeddings", "base_url": f"{llmock}/v1", "inputs_per_request": 4}
    outcomes = run(process, [*texts, texts[0]], **given)
    assert len({len(outcome.reply.embedding) for outcome in outcomes}) == 1
    assert outcomes[0].reply.embedding == outcomes[-1].reply.embedding != outcomes[1].reply.embedding
    assert verdict(llmock)["attempts"] == 3


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_what_no_retry_can_mend_is_asked_once(process, llmock, fields, status):
    script(llmock, {"type": "fail", "status": status})
    try:
        (outcome,) = run(process, ["hello"], **fields)
    except Exception as error:
        assert str(status) in str(error)
        assert status in (401, 403, 404)
    else:
        assert outcome.failure.status == status
    judged = verdict(llmock)
    assert (judged["attempts"], judged["findings"]) == (1, [])


def test_the_verdict_on_throttles_failures_and_delays(process, llmock, fields):
    """30 rows, 8 in flight: every fault is taken as llmock wants it, and every row is answered."""
    script(
        llmock,
        {"type": "delay", "seconds": 0.2, "times": 10},
        {"type": "fail", "status": 429, "retry_after": 0.5, "times": 6},
        {"type": "fail", "status": 500, "times": 4},
        {"type": "fail", "status": 503, "retry_after": 0.3, "times": 3},
        {"type": "fail", "status": 529, "times": 2},
    )
    prompts = [f"prompt number {i}" for i in range(30)]
    outcomes = run(process, prompts, max_concurrency=8, **fields)
    assert [prompt in outcome.reply.text for prompt, outcome in zip(prompts, outcomes, strict=True)] == [True] * 30
    judged = verdict(llmock)
    assert judged["passed"]
    assert judged["findings"] == []
    assert judged["calls"] == 30
    assert judged["attempts"] == 30 + 15
    assert sum(outcome.attempts for outcome in outcomes) == 45


def test_the_verdict_on_a_quota(process, address, tmp_path):
    """A token bucket of 240 a minute, asked for 10 more than it holds: what is refused waits as long as it is told."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [Path(sys.executable).with_name("llmock"), "serve", "--port", str(port), "--rpm", "240"]
    with running(command, f"{url}/_llmock/verdict", tmp_path / "log"):
        given = {"base_url": f"{url}/v1", "max_concurrency": 8}
        outcomes = run(process, [f"p{i}" for i in range(250)], **given)
        judged = verdict(url)
    assert all(outcome.failure is None for outcome in outcomes)
    assert judged["passed"]
    assert judged["findings"] == []
    assert judged["attempts"] == sum(outcome.attempts for outcome in outcomes)

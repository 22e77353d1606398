"""Against aimock (npm), a server that others wrote: Anthropic's messages, Azure, tools, malformed JSON, lost replies.

Installed once, from the npm registry, into the cache that the embedded models have as well.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.servers_of_others import KEY, free_port, http, run, running

VERSION = "1.43.0"
PACKAGE = "@copilotkit/aimock"

pytestmark = pytest.mark.skipif(
    not (shutil.which("node") and shutil.which("npm")), reason="aimock needs node and npm, which are not installed"
)

FIXTURES = [
    {
        "match": {"userMessage": "weather", "hasToolResult": False},
        "response": {"toolCalls": [{"id": "call_1", "name": "get_weather", "arguments": {"city": "Köln"}}]},
    },
    {"match": {"userMessage": "weather", "hasToolResult": True}, "response": {"content": "21 degrees."}},
    {"match": {"userMessage": "why"}, "response": {"content": "Rayleigh.", "reasoning": "Light scatters."}},
    {"match": {"systemMessage": "pirate", "userMessage": "greet"}, "response": {"content": "Ahoy!"}},
    {"match": {"userMessage": "long"}, "response": {"content": "cut off here", "finishReason": "length"}},
    {
        "match": {"userMessage": "too fast"},
        "response": {"error": {"message": "Slow down.", "type": "rate_limit_error"}, "status": 429},
    },
    {
        "match": {"userMessage": "too expensive"},
        "response": {"error": {"message": "Spend limit.", "type": "enforced_spend_limit_reached"}, "status": 429},
    },
    {"match": {"userMessage": "hello"}, "response": {"content": "Hello back."}},
]


@pytest.fixture(scope="module")
def script():
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "batch_infer" / f"aimock-{VERSION}"
    script = folder / "node_modules" / PACKAGE / "dist" / "cli.js"
    if not script.exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(folder)]
        subprocess.run([*command, f"{PACKAGE}@{VERSION}"], check=True, timeout=120, capture_output=True)
    return script


@pytest.fixture(scope="module")
def address(script, tmp_path_factory):
    folder = tmp_path_factory.mktemp("aimock")
    fixtures = folder / "fixtures.json"
    fixtures.write_text(json.dumps({"fixtures": FIXTURES}))
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = ["node", str(script), "--port", str(port), "--fixtures", str(fixtures)]
    with running(command, f"{url}/health", folder / "log"):
        yield url


@pytest.fixture
def aimock(address):
    yield address
    http("DELETE", f"{address}/__aimock/chaos")


@pytest.fixture(params=["anthropic", "openai", "azure"])
def fields(request, aimock):
    return {
        "anthropic": {"provider": "anthropic", "base_url": aimock},
        "openai": {"base_url": f"{aimock}/v1"},
        "azure": {"provider": "azure", "base_url": aimock, "api_version": "2024-10-21"},
    }[request.param]


def latest(aimock):
    return http("GET", f"{aimock}/v1/_requests")[-1]


def test_chat(process, fields):
    asked = [{"role": "system", "content": "You are a pirate."}, {"role": "user", "content": "greet me"}]
    (outcome,) = run(process, [asked], **fields)
    assert (outcome.reply.text, outcome.reply.finish_reason) == ("Ahoy!", "stop")


def test_reasoning(process, fields):
    (outcome,) = run(process, ["why is the sky blue?"], **fields)
    assert (outcome.reply.text, outcome.reply.reasoning) == ("Rayleigh.", "Light scatters.")


def test_a_reply_cut_at_the_limit(process, fields):
    (outcome,) = run(process, ["a long one"], **fields)
    assert (outcome.reply.text, outcome.reply.finish_reason) == ("cut off here", "length")


TOOL = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


def test_a_tool_call_and_the_turn_after_it(process, fields):
    question = {"role": "user", "content": "the weather?"}
    (first,) = run(process, [[question]], parameters={"tools": [TOOL]}, **fields)
    (call,) = first.reply.tool_calls
    assert (first.reply.text, first.reply.finish_reason) == ("", "tool_calls")
    assert (call.name, json.loads(call.arguments)) == ("get_weather", {"city": "Köln"})
    answer = {"role": "tool", "tool_call_id": call.id, "content": "21 C"}
    turns = [question, json.loads(first.reply.message), answer]
    (second,) = run(process, [turns], parameters={"tools": [TOOL]}, **fields)
    assert second.reply.text == "21 degrees."


def test_where_the_key_and_the_request_arrive(process, aimock, fields):
    run(process, ["hello"], **fields)
    seen = latest(aimock)
    provider = fields.get("provider", "openai")
    assert seen["path"].partition("?")[0] == {
        "anthropic": "/v1/messages",
        "openai": "/v1/chat/completions",
        "azure": "/openai/deployments/m/chat/completions",
    }[provider]  # fmt: skip
    name = {"anthropic": "x-api-key", "openai": "authorization", "azure": "api-key"}[provider]
    assert name in seen["headers"]
    assert KEY not in json.dumps(seen["headers"].get("authorization", "")) or provider == "openai"


def test_a_throttle_is_waited_out_until_the_deadline_and_a_spend_limit_stops_the_job(process, fields):
    (outcome,) = run(process, ["too fast"], throttle_deadline_s=1, **fields)
    assert outcome.failure.kind == "rate_limited"
    assert outcome.attempts >= 1
    with pytest.raises(Exception, match="Check its billing"):
        run(process, ["too expensive"], **fields)


@pytest.mark.parametrize(
    ("chaos", "kind"),
    [({"malformedRate": 1}, "malformed_reply"), ({"disconnectRate": 1}, "reset"), ({"dropRate": 1}, "server_error")],
    ids=str,
)
def test_what_breaks_is_tried_again_as_often_as_it_may_and_then_an_error(process, aimock, fields, chaos, kind):
    http("POST", f"{aimock}/__aimock/chaos", chaos)
    (outcome,) = run(process, ["hello"], max_attempts=2, **fields)
    assert outcome.failure.kind == kind
    assert outcome.attempts == 2


def test_rows_survive_a_server_that_breaks_one_reply_in_three(process, aimock, fields):
    http("POST", f"{aimock}/__aimock/chaos", {"dropRate": 0.2, "malformedRate": 0.15})
    given = {"max_attempts": 20, "max_ambiguous_retries": 20, "max_concurrency": 16}
    outcomes = run(process, [f"hello {i}" for i in range(60)], **given, **fields)
    assert [outcome.reply.text for outcome in outcomes] == ["Hello back."] * 60
    assert sum(outcome.attempts for outcome in outcomes) > 60


def test_embeddings(process, aimock):
    outcomes = run(process, ["a", "b", "a"], task="embeddings", base_url=f"{aimock}/v1")
    vectors = [outcome.reply.embedding for outcome in outcomes]
    assert vectors[0] == vectors[2] != vectors[1]

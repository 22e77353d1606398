"""The providers' own clients as judges: for the same call they send what we send, and read the same reply alike."""

from __future__ import annotations

import base64
import json
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs

import anthropic
import openai
import pytest
from databricks.sdk import WorkspaceClient
from databricks.sdk.oauth import ClientCredentials
from databricks.sdk.service.serving import ChatMessage, ChatMessageRole

from batch_infer.adapters.providers.calls import open_wire
from batch_infer.adapters.providers.registry import build_endpoint
from batch_infer.adapters.worker.credentials import Credentials, open_credentials
from batch_infer.adapters.worker.sender import Sender
from batch_infer.contract.content import canonical_messages
from batch_infer.contract.parameters import check_parameters
from batch_infer.contract.reply_reader import ReplyReader
from batch_infer.contract.request import Request

KEY = "key-of-nobody"
PNG = b"\x89PNG\r\n\x1a\n" + b"0" * 8


class Seen(NamedTuple):
    path: str
    body: Any
    key: tuple[str, str]
    """The header that carries the key, and its value."""
    headers: dict[str, str]


class Recorder:
    """Answers every POST with the same reply, and keeps what it was asked."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.reply: Any = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers.get("content-length", 0)))
                headers = {name.lower(): value for name, value in self.headers.items()}
                names = ("authorization", "api-key", "x-api-key")
                key = next((name, headers[name]) for name in names if name in headers)
                is_form = headers.get("content-type", "").startswith("application/x-www-form-urlencoded")
                body = parse_qs(raw.decode()) if is_form else json.loads(raw)
                outer.seen.append(Seen(self.path, body, key, headers))
                self._answer(200, outer.reply)

            def do_GET(self) -> None:
                self._answer(404, {})

            def _answer(self, status: int, value: Any) -> None:
                body = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="module")
def server():
    recorder = Recorder()
    yield recorder
    recorder.close()


@pytest.fixture
def recorder(server, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server.seen.clear()
    return server


def ours(process, request, *, parameters=None, response_format=None, files=(), **fields):
    """The same through everything below Spark: parameters checked, credentials, wire format, transport."""
    endpoint = build_endpoint("mine", {"model": "m", **fields})
    rows = request if isinstance(request, list) and isinstance(request[0], bytes) else [request]
    requests = [
        Request(
            key=str(i),
            content=canonical_messages(content) if isinstance(content, list) else content,
            files=files,
            prompt_tokens=1,
        )
        for i, content in enumerate(rows)
    ]
    oauth = endpoint.client_id is not None
    credentials = open_credentials("call", endpoint, process, None) if oauth else Credentials(KEY)
    wire = open_wire(
        endpoint,
        base_url=endpoint.base_url,
        parameters=check_parameters(parameters, endpoint.task),
        response_format=response_format,
        api_key=credentials.api_key,
    )
    sender = Sender(endpoint, wire, credentials.over(process.transport(endpoint)), ReplyReader("string"))
    return process.wait(sender(requests))


OTHER_HEADERS = {"/openai/v1/": ("api-key", KEY), "/v1/messages": ("x-api-key", KEY)}
"""Where we send the key in the header that the API documents, and their client as a bearer token."""


def same_request(recorder):
    """What both sent, which must be the same in path, body and key; returns the body."""
    theirs, mine = recorder.seen
    assert mine.path == theirs.path
    assert mine.body == theirs.body
    other = next((header for path, header in OTHER_HEADERS.items() if mine.path.startswith(path)), None)
    assert mine.key == (other or theirs.key)
    assert theirs.key[1].removeprefix("Bearer ") == KEY
    assert mine.headers["content-type"].split(";")[0] == theirs.headers["content-type"].split(";")[0]
    return mine.body


def usage_of(usage):
    return (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens)


CHAT_REPLY = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "m-2026",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "Bonjour", "refusal": None}, "finish_reason": "stop"},
        {"index": 1, "message": {"role": "assistant", "content": "Salut", "refusal": None}, "finish_reason": "length"},
    ],
    "usage": {
        "prompt_tokens": 9, "completion_tokens": 12, "total_tokens": 21,
        "prompt_tokens_details": {"cached_tokens": 4}, "completion_tokens_details": {"reasoning_tokens": 3},
    },
}  # fmt: skip
MESSAGES = [{"role": "system", "content": "Translate."}, {"role": "user", "content": "hello “you” 💥"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
SCHEMA = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"], "additionalProperties": False}
FORM = {"type": "json_schema", "json_schema": {"name": "reply", "schema": SCHEMA, "strict": True}}


@pytest.fixture(params=["openai", "azure", "azure_v1"])
def openai_like(request, recorder):
    """An OpenAI client, and the fields of our endpoint for the same place."""
    settings = {"api_key": KEY, "max_retries": 0}
    if request.param == "azure":
        client = openai.AzureOpenAI(azure_endpoint=recorder.url, api_version="2024-10-21", **settings)
        return client, {"provider": "azure", "base_url": recorder.url, "api_version": "2024-10-21"}
    base_url = recorder.url + ("/openai/v1" if request.param == "azure_v1" else "/v1")
    client = openai.OpenAI(base_url=base_url, **settings)
    return client, {"provider": "azure" if request.param == "azure_v1" else "openai", "base_url": base_url}


def test_chat(recorder, process, openai_like):
    client, fields = openai_like
    recorder.reply = CHAT_REPLY
    parameters = {
        "max_tokens": 50, "temperature": 0.5, "stop": ["END"], "n": 2, "seed": 7, "tools": [TOOL],
        "tool_choice": "auto", "logit_bias": {"50256": -100},
    }  # fmt: skip
    theirs = client.chat.completions.create(model="m", messages=MESSAGES, response_format=FORM, **parameters)
    (reply,) = ours(process, MESSAGES, parameters=parameters, response_format=FORM, **fields)
    assert same_request(recorder)["n"] == 2
    assert reply.text == theirs.choices[0].message.content
    assert list(reply.choices) == [choice.message.content for choice in theirs.choices]
    assert reply.finish_reason == theirs.choices[0].finish_reason
    assert reply.model == theirs.model
    assert usage_of(reply.usage) == usage_of(theirs.usage)
    assert reply.usage.cached_tokens == theirs.usage.prompt_tokens_details.cached_tokens
    assert reply.usage.reasoning_tokens == theirs.usage.completion_tokens_details.reasoning_tokens


def test_tool_calls(recorder, process, openai_like):
    client, fields = openai_like
    calls = [{"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Köln"}'}}]
    message = {"role": "assistant", "content": None, "tool_calls": calls}
    recorder.reply = {**CHAT_REPLY, "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]}
    theirs = client.chat.completions.create(model="m", messages=MESSAGES, tools=[TOOL], tool_choice="required")
    (reply,) = ours(process, MESSAGES, parameters={"tools": [TOOL], "tool_choice": "required"}, **fields)
    same_request(recorder)
    (their_call,) = theirs.choices[0].message.tool_calls
    (call,) = reply.tool_calls
    assert (call.id, call.name, call.arguments) == (
        their_call.id, their_call.function.name, their_call.function.arguments,
    )  # fmt: skip
    assert reply.finish_reason == theirs.choices[0].finish_reason


def test_images_and_thinking_and_the_next_turn(recorder, process, openai_like):
    client, fields = openai_like
    blocks = [
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm.", "signature": "Eq+/=="}]},
        {"type": "text", "text": "Blue."},
    ]
    message = {"role": "assistant", "content": blocks}
    recorder.reply = {**CHAT_REPLY, "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
    thinking = {"type": "enabled", "budget_tokens": 10}
    url = "data:image/png;base64," + base64.b64encode(PNG).decode()
    content = [{"type": "text", "text": "why?"}, {"type": "image_url", "image_url": {"url": url}}]
    theirs = client.chat.completions.create(
        model="m", messages=[{"role": "user", "content": content}], max_tokens=20, extra_body={"thinking": thinking}
    )
    (reply,) = ours(process, "why?", files=(PNG,), parameters={"max_tokens": 20, "thinking": thinking}, **fields)
    same_request(recorder)
    said = theirs.choices[0].message
    assert reply.reasoning == said.content[0]["summary"][0]["text"]
    assert reply.text == said.content[1]["text"]
    assert json.loads(reply.message)["content"] == said.content


def test_completions(recorder, process, openai_like):
    client, fields = openai_like
    recorder.reply = {
        "id": "cmpl-1", "object": "text_completion", "created": 1, "model": "m-2026",
        "choices": [
            {"text": " a", "index": 0, "logprobs": None, "finish_reason": "stop"},
            {"text": " b", "index": 1, "logprobs": None, "finish_reason": "length"},
        ],
        "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
    }  # fmt: skip
    parameters = {"max_tokens": 5, "n": 2, "stop": "x"}
    theirs = client.completions.create(model="m", prompt="Once", **parameters)
    (reply,) = ours(process, "Once", task="completions", parameters=parameters, **fields)
    same_request(recorder)
    assert list(reply.choices) == [choice.text for choice in theirs.choices]
    assert (reply.text, reply.finish_reason) == (theirs.choices[0].text, theirs.choices[0].finish_reason)
    assert usage_of(reply.usage) == usage_of(theirs.usage)


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_embeddings(recorder, process, openai_like, encoding):
    client, fields = openai_like
    vector: Any = [0.5, -1.25, 3.0]
    if encoding == "base64":
        vector = base64.b64encode(struct.pack("<3f", *vector)).decode()
    recorder.reply = {
        "object": "list", "model": "m-2026", "usage": {"prompt_tokens": 4, "total_tokens": 4},
        "data": [{"object": "embedding", "index": 0, "embedding": vector}],
    }  # fmt: skip
    # base64 is what their client asks for by itself.
    given = {"encoding_format": encoding} if encoding == "float" else {}
    theirs = client.embeddings.create(model="m", input=["text"], dimensions=3, **given)
    parameters = {"dimensions": 3, "encoding_format": encoding}
    (reply,) = ours(process, "text", task="embeddings", parameters=parameters, **fields)
    same_request(recorder)
    assert reply.embedding == theirs.data[0].embedding == [0.5, -1.25, 3.0]
    assert reply.usage.prompt_tokens == theirs.usage.prompt_tokens


# Databricks


@pytest.fixture
def workspace(recorder):
    return WorkspaceClient(host=recorder.url, token=KEY, auth_type="pat")


def fields_of(recorder, **more):
    return {"provider": "databricks", "base_url": recorder.url, **more}


def test_databricks_chat(recorder, process, workspace):
    recorder.reply = CHAT_REPLY
    theirs = workspace.serving_endpoints.query(
        name="m",
        messages=[
            ChatMessage(role=ChatMessageRole.SYSTEM, content="Translate."),
            ChatMessage(role=ChatMessageRole.USER, content=MESSAGES[1]["content"]),
        ],
        max_tokens=128,
        temperature=0.1,
        n=2,
        stop=["END"],
    )
    parameters = {"max_tokens": 128, "temperature": 0.1, "n": 2, "stop": ["END"]}
    (reply,) = ours(process, MESSAGES, parameters=parameters, **fields_of(recorder))
    same_request(recorder)
    assert recorder.seen[1].path == "/serving-endpoints/m/invocations"
    assert list(reply.choices) == [choice.message.content for choice in theirs.choices]
    assert usage_of(reply.usage) == usage_of(theirs.usage)


def test_databricks_completions(recorder, process, workspace):
    recorder.reply = {
        "choices": [{"text": "Three reasons.", "index": 0, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
    }
    theirs = workspace.serving_endpoints.query(name="m", prompt="Why?", extra_params={"top_p": "0.9"}, stream=False)
    parameters = {"extra_params": {"top_p": "0.9"}, "stream": False}
    (reply,) = ours(process, "Why?", task="completions", parameters=parameters, **fields_of(recorder))
    same_request(recorder)
    assert reply.text == theirs.choices[0].text


def test_databricks_embeddings(recorder, process, workspace):
    recorder.reply = {
        "object": "list", "model": "gte", "usage": {"prompt_tokens": 4, "total_tokens": 4},
        "data": [{"object": "embedding", "index": 0, "embedding": [0.5, 1.5]}],
    }  # fmt: skip
    theirs = workspace.serving_endpoints.query(name="m", input=["text"])
    (reply,) = ours(process, "text", task="embeddings", **fields_of(recorder))
    same_request(recorder)
    assert reply.embedding == theirs.data[0].embedding


def test_databricks_custom_model(recorder, process, workspace):
    records = [{"a": 1, "b": "x"}, {"a": 2.5, "b": None}]
    recorder.reply = {"predictions": [{"label": "spam"}, 0.5]}
    theirs = workspace.serving_endpoints.query(name="m", dataframe_records=records)
    rows = [json.dumps(record).encode() for record in records]
    results = ours(process, rows, task="custom", **fields_of(recorder))
    same_request(recorder)
    assert [json.loads(reply.text) for reply in results] == theirs.predictions


def test_databricks_oauth(recorder, process, monkeypatch):
    monkeypatch.setenv("CLIENT_ID", "an-id")
    monkeypatch.setenv("CLIENT_SECRET", "dose-secret")
    recorder.reply = {"access_token": "issued", "token_type": "Bearer", "expires_in": 3600, **CHAT_REPLY}
    source = ClientCredentials(
        client_id="an-id",
        client_secret="dose-secret",
        token_url=f"{recorder.url}/oidc/v1/token",
        scopes="all-apis",
        use_header=True,
    )
    assert source.token().access_token == "issued"
    fields = fields_of(recorder, client_id="env:CLIENT_ID", client_secret="env:CLIENT_SECRET")
    ours(process, "hello", **fields)
    theirs, mine, asked = recorder.seen
    assert (mine.path, mine.body, mine.key) == (theirs.path, theirs.body, theirs.key)
    assert asked.key == ("authorization", "Bearer issued")


# Anthropic


@pytest.fixture
def claude(recorder):
    return anthropic.Anthropic(api_key=KEY, base_url=recorder.url, max_retries=0)


def claude_reply(content, stop_reason="end_turn"):
    usage = {
        "input_tokens": 3, "output_tokens": 9, "cache_read_input_tokens": 20, "cache_creation_input_tokens": 7,
    }  # fmt: skip
    return {
        "id": "msg_1", "type": "message", "role": "assistant", "model": "claude-x-1", "content": content,
        "stop_reason": stop_reason, "stop_sequence": None, "usage": usage,
    }  # fmt: skip


def test_anthropic_text_image_and_thinking(recorder, process, claude):
    recorder.reply = claude_reply(
        [
            {"type": "thinking", "thinking": "Hm.", "signature": "Eq+/=="},
            {"type": "text", "text": "An ant"},
            {"type": "text", "text": "."},
        ]
    )
    source = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(PNG).decode()}
    content = [{"type": "text", "text": "what's this?"}, {"type": "image", "source": source}]
    thinking = {"type": "enabled", "budget_tokens": 1024}
    theirs = claude.messages.create(
        model="m",
        max_tokens=2000,
        system="Be brief.",
        messages=[{"role": "user", "content": content}],
        stop_sequences=["END"],
        thinking=thinking,
    )
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "what's this?"}]
    parameters = {"max_tokens": 2000, "stop": "END", "thinking": thinking}
    (reply,) = ours(process, asked, files=(PNG,), parameters=parameters, provider="anthropic", base_url=recorder.url)
    same_request(recorder)
    assert recorder.seen[1].headers["anthropic-version"] == recorder.seen[0].headers["anthropic-version"]
    assert reply.text == "".join(block.text for block in theirs.content if block.type == "text")
    assert reply.reasoning == theirs.content[0].thinking
    assert reply.model == theirs.model
    assert reply.usage.completion_tokens == theirs.usage.output_tokens
    assert reply.usage.cached_tokens == theirs.usage.cache_read_input_tokens
    assert reply.usage.prompt_tokens == 30  # their input_tokens leave out what was read from and written to the cache
    kept = [block.model_dump(exclude_none=True) for block in theirs.content]
    assert json.loads(reply.message) == {"role": "assistant", "content": kept}


def test_anthropic_tools_and_their_results(recorder, process, claude):
    recorder.reply = claude_reply(
        [{"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Köln"}}], "tool_use"
    )
    schema = TOOL["function"]["parameters"]
    theirs = claude.messages.create(
        model="m",
        max_tokens=1024,
        messages=[
            {"role": "user", "content": "weather?"},
            {"role": "assistant",
             "content": [{"type": "tool_use", "id": "t0", "name": "weather", "input": {"city": "x"}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t0", "content": "sunny"}]},
        ],
        tools=[{"name": "weather", "description": "The weather.", "input_schema": schema}],
        tool_choice={"type": "any"},
    )  # fmt: skip
    call = {"id": "t0", "type": "function", "function": {"name": "weather", "arguments": '{"city": "x"}'}}
    asked = [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "t0", "content": "sunny"},
    ]
    parameters = {"tools": [TOOL], "tool_choice": "required"}
    (reply,) = ours(process, asked, parameters=parameters, provider="anthropic", base_url=recorder.url)
    same_request(recorder)
    (block,) = theirs.content
    (made,) = reply.tool_calls
    assert (made.id, made.name, json.loads(made.arguments)) == (block.id, block.name, block.input)
    assert (reply.text, reply.finish_reason, theirs.stop_reason) == ("", "tool_calls", "tool_use")


def test_anthropic_structured_output(recorder, process, claude):
    recorder.reply = claude_reply([{"type": "text", "text": '{"x": 1}'}])
    theirs = claude.messages.create(
        model="m",
        max_tokens=1024,
        messages=[{"role": "user", "content": "x?"}],
        output_config={"format": {"type": "json_schema", "schema": SCHEMA}},
    )
    (reply,) = ours(process, "x?", response_format=FORM, provider="anthropic", base_url=recorder.url)
    same_request(recorder)
    assert reply.text == theirs.content[0].text

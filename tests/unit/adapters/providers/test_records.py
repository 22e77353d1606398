"""Each provider's record: what its variables make, where requests go, what its documented errors and headers mean."""

import asyncio
import json

import pytest

from batch_infer.adapters.providers import PROVIDERS
from batch_infer.adapters.providers.calls import open_wire
from batch_infer.adapters.providers.limit_headers import limits_in
from batch_infer.adapters.providers.record import Environment, Provider
from batch_infer.adapters.providers.registry import build_endpoint, find_endpoint
from batch_infer.adapters.transport import HttpReply
from batch_infer.adapters.transport.status import error_in_reply, error_of
from batch_infer.adapters.worker.sender import Sender
from batch_infer.contract.errors import (
    Ambiguous,
    ConfigError,
    EndpointError,
    JobRejected,
    RowRejected,
    Throttled,
    Transient,
)
from batch_infer.contract.limits import Limits
from batch_infer.contract.reply_reader import ReplyReader
from batch_infer.contract.request import Request

AWS = "https://bedrock-runtime.eu-west-1.amazonaws.com/openai/v1"
VERTEX = "https://us-central1-aiplatform.googleapis.com/v1/projects/p/locations/us-central1/endpoints/openapi"


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch):
    for provider in PROVIDERS.values():
        for name in provider.environment.variables:
            monkeypatch.delenv(name, raising=False)


UNREGISTERED = [
    ("openai/gpt-x", {}, "https://api.openai.com/v1/chat/completions", "env:OPENAI_API_KEY"),
    ("openrouter/meta/llama", {}, "https://openrouter.ai/api/v1/chat/completions", "env:OPENROUTER_API_KEY"),
    ("groq/llama-3", {}, "https://api.groq.com/openai/v1/chat/completions", "env:GROQ_API_KEY"),
    ("mistral/mistral-embed", {}, "https://api.mistral.ai/v1/embeddings", "env:MISTRAL_API_KEY"),
    ("deepseek/deepseek-chat", {}, "https://api.deepseek.com/v1/chat/completions", "env:DEEPSEEK_API_KEY"),
    ("xai/grok-4", {}, "https://api.x.ai/v1/chat/completions", "env:XAI_API_KEY"),
    ("together/BAAI/bge-base", {}, "https://api.together.xyz/v1/embeddings", "env:TOGETHER_API_KEY"),
    ("fireworks/m", {}, "https://api.fireworks.ai/inference/v1/chat/completions", "env:FIREWORKS_API_KEY"),
    ("vertex/gemini-2.5-flash", {"GOOGLE_CLOUD_PROJECT": "p"}, f"{VERTEX}/chat/completions", "google:default"),
    ("bedrock/openai.gpt-oss", {"AWS_REGION": "eu-west-1"}, f"{AWS}/chat/completions", "aws:default"),
    (
        "bedrock/openai.gpt-oss",
        {"AWS_DEFAULT_REGION": "eu-west-1", "AWS_BEARER_TOKEN_BEDROCK": "k"},
        f"{AWS}/chat/completions",
        "env:AWS_BEARER_TOKEN_BEDROCK",
    ),
    ("ollama/qwen3", {}, "http://127.0.0.1:11434/v1/chat/completions", None),
    ("ollama/qwen3", {"OLLAMA_HOST": "0.0.0.0:9000"}, "http://127.0.0.1:9000/v1/chat/completions", None),
    ("vllm/qwen3", {"VLLM_API_KEY": "k"}, "http://localhost:8000/v1/chat/completions", "env:VLLM_API_KEY"),
    ("llamacpp/any", {"LLAMACPP_BASE_URL": "http://localhost:9/v1"}, "http://localhost:9/v1/chat/completions", None),
    ("gemini/gemini-embedding-001", {}, f"{PROVIDERS['gemini'].base_url}/embeddings", "env:GEMINI_API_KEY"),
]


@pytest.mark.parametrize(("name", "variables", "url", "key"), UNREGISTERED)
def test_a_provider_and_a_model_need_no_registration(monkeypatch, name, variables, url, key):
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    found = find_endpoint(name, {})
    wire = open_wire(found, base_url=found.base_url, parameters={}, response_format=None, api_key="secret")
    assert (found.provider, wire.url, found.api_key) == (name.partition("/")[0], url, key)


def test_a_base_url_variable_goes_before_the_default_address(monkeypatch):
    monkeypatch.setenv("GROQ_BASE_URL", "https://gateway.example.com/groq/v1")
    assert find_endpoint("groq/llama-3", {}).base_url == "https://gateway.example.com/groq/v1"


@pytest.mark.parametrize(
    ("name", "told"), [("vertex/gemini", "GOOGLE_CLOUD_PROJECT"), ("bedrock/openai.gpt", "AWS_REGION")]
)
def test_a_missing_variable_of_an_address_is_named(name, told):
    with pytest.raises(ConfigError, match=told):
        find_endpoint(name, {})


ERRORS = [
    ("openrouter", 403, {"error": {"code": 403, "message": "x", "metadata": {"reasons": ["v"]}}}, RowRejected, "row"),
    ("openrouter", 403, {"error": {"code": 403, "message": "No access"}}, JobRejected, "call"),
    ("openrouter", 402, {"error": {"code": 402, "message": "Insufficient credits"}}, JobRejected, "call"),
    ("openrouter", 502, {"error": {"code": 502, "message": "Model is down"}}, Transient, "endpoint"),
    ("groq", 498, {"error": {"message": "x", "code": "capacity_exceeded"}}, Throttled, "endpoint"),
    ("groq", 413, {"error": {"message": "x", "type": "tokens", "code": "rate_limit_exceeded"}}, RowRejected, "row"),
    ("groq", 429, {"error": {"message": "x", "type": "tokens", "code": "rate_limit_exceeded"}}, Throttled, "endpoint"),
    ("mistral", 429, {"object": "error", "type": "service_tier_capacity_exceeded", "message": "x"}, Throttled,
     "endpoint"),
    ("mistral", 422, {"object": "error", "message": {"detail": []}, "type": "invalid_request_error"}, RowRejected,
     "row"),
    ("deepseek", 402, {"error": {"message": "Insufficient Balance", "code": "invalid_request_error"}}, JobRejected,
     "call"),
    ("xai", 400, {"code": "Client specified an invalid argument", "error": "Incorrect API key provided: xa***"},
     JobRejected, "call"),
    ("xai", 400, {"code": "Client specified an invalid argument", "error": "Bad value"}, RowRejected, "row"),
    ("together", 429, {"error": {"message": "x", "type": "rate_limit"}}, Throttled, "endpoint"),
    ("fireworks", 412, {"error": {"message": "Account suspended"}}, JobRejected, "call"),
    ("vertex", 400, [{"error": {"code": 400, "message": "API key not valid", "status": "INVALID_ARGUMENT",
                                "details": [{"reason": "API_KEY_INVALID"}]}}], JobRejected, "call"),
    ("gemini", 503, [{"error": {"code": 503, "message": "x", "status": "UNAVAILABLE"}}], Transient, "endpoint"),
    ("ollama", 404, {"error": {"message": 'model "x" not found', "type": "not_found_error"}}, JobRejected, "call"),
    ("ollama", 503, {"error": {"message": "server busy"}}, Throttled, "endpoint"),
    ("vllm", 400, {"object": "error", "message": "maximum context length is 4096", "code": 400}, RowRejected, "row"),
    ("llamacpp", 503, {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}, Throttled,
     "endpoint"),
    ("llamacpp", 400, {"error": {"code": 400, "message": "x", "type": "exceed_context_size_error"}}, RowRejected,
     "row"),
    ("databricks", 429, {"error_code": "REQUEST_LIMIT_EXCEEDED", "message": "x"}, Throttled, "endpoint"),
    ("anthropic", 529, {"error": {"type": "overloaded_error", "message": "x"}}, Throttled, "endpoint"),
]  # fmt: skip


@pytest.mark.parametrize(("provider", "status", "body", "cls", "scope"), ERRORS)
def test_a_documented_error_has_its_class_and_scope(provider, status, body, cls, scope):
    error = error_of("'e'", status, {}, json.dumps(body).encode(), rules=PROVIDERS[provider].errors)
    assert (type(error), error.scope, error.status) == (cls, scope, status)


@pytest.mark.parametrize(
    ("code", "cls", "kind", "scope"),
    [
        ("ThrottlingException", Throttled, "rate_limited", "endpoint"),
        ("ValidationException", RowRejected, "bad_request", "row"),
        ("AccessDeniedException", JobRejected, "permission", "call"),
        ("ModelTimeoutException", Ambiguous, "timeout", "row"),
    ],
)
def test_bedrock_names_its_errors_in_a_header(code, cls, kind, scope):
    headers = {"x-amzn-errortype": f"{code}:http://internal.amazon.com/"}
    error = error_of("'e'", 400, headers, b'{"message": "x"}', rules=PROVIDERS["bedrock"].errors)
    assert (type(error), error.kind, error.scope) == (cls, kind, scope)


def test_every_codes_class_pickles_and_has_a_scope():
    for provider in PROVIDERS.values():
        for verdict in (*provider.errors.codes.values(), *provider.errors.statuses.values()):
            assert issubclass(verdict.error, EndpointError)
            assert verdict.scope in ("row", "call", "endpoint")


def test_an_error_inside_a_200_is_judged_by_the_same_codes():
    error = error_in_reply("'e'", {"type": "overloaded_error", "message": "x"}, PROVIDERS["anthropic"].errors)
    assert (type(error), error.scope) == (Throttled, "endpoint")


@pytest.mark.parametrize(
    ("provider", "headers", "limits"),
    [
        (
            "groq",
            {"x-ratelimit-limit-requests": "14400", "x-ratelimit-limit-tokens": "18000"},
            Limits(tokens_per_minute=18000),
        ),
        (
            "together",
            {"x-ratelimit-limit": "10", "x-tokenlimit-limit": "3000", "x-ratelimit-reset": "1"},
            Limits(requests_per_minute=600, tokens_per_minute=180_000),
        ),
        (
            "fireworks",
            {
                "x-ratelimit-limit-requests": "600",
                "x-ratelimit-limit-tokens-prompt": "60000",
                "x-ratelimit-limit-tokens-generated": "6000",
            },
            Limits(requests_per_minute=600, input_tokens_per_minute=60000, output_tokens_per_minute=6000),
        ),
        (
            "mistral",
            {"x-ratelimit-limit-req-minute": "60", "x-ratelimitbysize-limit-minute": "500000"},
            Limits(requests_per_minute=60, tokens_per_minute=500000),
        ),
        ("xai", {"x-ratelimit-limit-requests": "480"}, Limits(requests_per_minute=480)),
        ("deepseek", {"x-ratelimit-limit-requests": "1"}, None),
    ],
)
def test_documented_limit_headers_are_read(provider, headers, limits):
    assert limits_in(headers, PROVIDERS[provider].limit_headers) == limits


class Scripted:
    """A transport that remembers what was posted and answers as told."""

    def __init__(self, status, body, headers=None):
        self.reply = HttpReply(status, headers or {}, json.dumps(body).encode())
        self.posted = []

    async def post(self, url, headers, body, *, timeout_s):
        self.posted.append((url, dict(headers), json.loads(body)))
        return self.reply


def test_a_server_that_speaks_openais_wire_is_one_record_of_a_few_lines(monkeypatch):
    """What `.github/CONTRIBUTING.md` says under "add a provider", done."""
    acme = Provider(
        name="acme",
        base_url="https://api.acme.example/v1",
        environment=Environment(key="ACME_API_KEY"),
    )
    monkeypatch.setitem(PROVIDERS, acme.name, acme)
    monkeypatch.setenv("ACME_API_KEY", "acme-key")
    found = find_endpoint("acme/roadrunner-1", {})
    wire = open_wire(found, base_url=found.base_url, parameters={"max_tokens": 4}, response_format=None, api_key="K1")
    said = {"choices": [{"message": {"content": "Beep."}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 3}}
    transport = Scripted(200, said, {"x-ratelimit-limit-requests": "60"})
    sender = Sender(found, wire, transport, ReplyReader("string"))
    (reply,) = asyncio.run(sender([Request(key="k", content="Hi", prompt_tokens=1)]))
    ((url, headers, body),) = transport.posted
    assert (url, headers["authorization"]) == ("https://api.acme.example/v1/chat/completions", "Bearer K1")
    assert body == {"model": "roadrunner-1", "max_tokens": 4, "messages": [{"role": "user", "content": "Hi"}]}
    assert reply.text == "Beep."
    assert sender.seen == Limits(requests_per_minute=60)


def test_a_models_name_decides_the_task_where_none_is_given_whether_registered_or_not():
    fields = {"base_url": "https://example.com/v1"}
    assert build_endpoint("e", {**fields, "model": "text-embedding-3-small"}).task == "embeddings"
    assert build_endpoint("e", {**fields, "model": "bge-large"}).task == "embeddings"
    assert build_endpoint("e", {**fields, "model": "gpt-x"}).task == "chat"
    assert build_endpoint("e", {**fields, "model": "text-embedding-3-small", "task": "chat"}).task == "chat"
    assert build_endpoint("e", {"provider": "anthropic", "model": "claude-embed"}).task == "chat"


def test_headers_and_query_go_with_each_request_and_win_over_the_wires_own():
    endpoint = build_endpoint(
        "e",
        {
            "base_url": "https://gateway.example.com/v1",
            "model": "m",
            "headers": {"X-Team": "blue", "Accept": "application/json; v=2"},
            "query": {"api-version": "7", "key": "env:GATEWAY_KEY"},
        },
    )
    wire = open_wire(
        endpoint,
        base_url=endpoint.base_url,
        parameters={},
        response_format=None,
        api_key=None,
        headers=dict(endpoint.headers),
        query={"api-version": "7", "key": "s p"},
    )
    assert wire.url == "https://gateway.example.com/v1/chat/completions?api-version=7&key=s+p"
    assert (wire.headers["x-team"], wire.headers["accept"]) == ("blue", "application/json; v=2")


def test_a_refused_address_is_named_without_its_query():
    endpoint = build_endpoint("e", {"base_url": "https://example.com/v2", "model": "m"})
    wire = open_wire(
        endpoint, base_url=endpoint.base_url, parameters={}, response_format=None, api_key=None, query={"key": "hidden"}
    )
    sender = Sender(endpoint, wire, Scripted(404, {"error": {"message": "no such path"}}), ReplyReader("string"))
    with pytest.raises(JobRejected) as refused:
        asyncio.run(sender([Request(key="k", content="Hi", prompt_tokens=1)]))
    assert "HTTP 404 from https://example.com/v2/chat/completions: no such path." in refused.value.message
    assert "hidden" not in refused.value.message

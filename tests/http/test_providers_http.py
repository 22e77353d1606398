"""Each provider over real HTTP, as a worker opens it: addresses, credentials, tokens that run out, packed records."""

import asyncio
import json

import pytest

from batch_infer.adapters.providers.calls import open_wire
from batch_infer.adapters.providers.registry import build_endpoint
from batch_infer.adapters.worker.credentials import open_credentials
from batch_infer.adapters.worker.process import WorkerProcess
from batch_infer.adapters.worker.sender import Sender
from batch_infer.contract.errors import Ambiguous, EndpointError, JobRejected, RowRejected, Throttled, WrongReply
from batch_infer.contract.reply import Reply
from batch_infer.contract.reply_reader import ReplyReader
from batch_infer.contract.request import Request
from batch_infer.testing import Rule

KEY = "a-key-of-no-known-shape-1"
CLIENT = "an-id:a secret/1"


@pytest.fixture
def process():
    process = WorkerProcess()
    yield process
    for transport in process._transports.values():
        process.wait(transport.close())
    process.loop.call_soon_threadsafe(process.loop.stop)


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    monkeypatch.setenv("THE_KEY", KEY)
    client_id, _, client_secret = CLIENT.partition(":")
    monkeypatch.setenv("CLIENT_ID", client_id)
    monkeypatch.setenv("CLIENT_SECRET", client_secret)


def row(content="hello", key="k"):
    return Request(key=key, content=content, prompt_tokens=1)


class Driver:
    """The driver's service as a worker sees it: it resolves references, of the one call that it knows."""

    def __init__(self, **values):
        self.values = values
        self.asked = []

    def secret(self, call, reference):
        assert call == "call"
        self.asked.append(str(reference))
        return self.values.get(str(reference))


def ask(process, endpoint, *requests, parameters=None, result_type="string", driver=None, **fields):
    """One attempt with credentials as a worker opens them; the raised error stands for all rows."""
    given = {"model": "m", "base_url": endpoint.base_url.removesuffix("/v1"), "api_key": "env:THE_KEY", **fields}
    made = build_endpoint("mine", {name: value for name, value in given.items() if value is not None})
    credentials = open_credentials("call", made, process, driver)
    wire = open_wire(
        made,
        base_url=made.base_url,
        parameters=parameters or {},
        response_format=None,
        api_key=credentials.api_key,
    )
    sender = Sender(
        made, wire, credentials.over(process.transport(made)), ReplyReader(result_type), secrets=credentials.secrets
    )

    async def send():
        try:
            return await sender(list(requests) or [row()])
        except EndpointError as error:
            return [error]

    return process.wait(send())


OAUTH = {"provider": "databricks", "api_key": None, "client_id": "env:CLIENT_ID", "client_secret": "env:CLIENT_SECRET"}


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"provider": "anthropic"}, "/v1/messages"),
        ({"provider": "azure", "api_version": "2024-10-21"},
         "/openai/deployments/m/chat/completions?api-version=2024-10-21"),
        ({"provider": "databricks"}, "/serving-endpoints/m/invocations"),
        ({"provider": "databricks", "model": "e/m2"}, "/serving-endpoints/e/served-models/m2/invocations"),
        ({"provider": "gemini"}, "/chat/completions"),
    ],
    ids=str,
)  # fmt: skip
def test_a_chat_with_the_key_where_the_provider_looks_for_it(tell, process, fields, path):
    endpoint = tell(api_key=KEY)
    (reply,) = ask(process, endpoint, **fields)
    assert type(reply) is Reply
    assert (reply.text, reply.usage.prompt_tokens, reply.usage.total_tokens) == ("echo: hello", 1, 3)
    assert endpoint.stats()["paths"] == {path: 1}


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("null_content", "empty_reply"),
        ("content_filter", "content_filter"),
        ("empty_choices", "empty_reply"),
        ("truncated_json", "malformed_reply"),
        ("html_200", "malformed_reply"),
        ("error_in_200", "error_in_reply"),
        ("redirect", "redirect"),
    ],
)
def test_each_fault_of_anthropics_is_an_error(tell, process, fault, kind):
    (error,) = ask(process, tell(api_key=KEY, rules=[Rule(fault=fault)]), provider="anthropic")
    assert isinstance(error, EndpointError)
    assert error.kind == kind
    assert KEY not in str(error)


@pytest.mark.parametrize("fault", ["missing_usage", "nan_usage", "negative_usage", "length", "lone_surrogate", "gzip"])
def test_what_can_be_read_of_anthropics_is_a_reply(tell, process, fault):
    (reply,) = ask(process, tell(api_key=KEY, rules=[Rule(fault=fault)]), provider="anthropic")
    assert type(reply) is Reply
    assert reply.text.startswith("echo:")
    assert reply.usage.prompt_tokens in (None, 1)


@pytest.mark.parametrize(
    "fields",
    [{"provider": "anthropic"}, {"provider": "azure", "api_version": "1"}, {"provider": "databricks"}],
    ids=str,
)
def test_an_endpoint_that_repeats_the_key_does_not_bring_it_into_a_message(tell, process, fields):
    endpoint = tell(rules=[Rule(status=401, error={"message": f"Wrong key {KEY}."})])
    (error,) = ask(process, endpoint, **fields)
    assert type(error) is JobRejected
    assert "Wrong key [redacted]." in error.message


def test_thinking_and_a_demanded_tool(tell, process):
    endpoint = tell(api_key=KEY)
    tool = {"type": "function", "function": {"name": "f", "parameters": {"properties": {"x": {"type": "integer"}}}}}
    tool["function"]["parameters"]["type"] = "object"
    parameters = {
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "max_tokens": 2000,
        "tools": [tool],
        "tool_choice": "required",
    }
    (reply,) = ask(process, endpoint, provider="anthropic", parameters=parameters)
    assert (reply.reasoning, reply.text, reply.finish_reason) == ("Let me think.", "", "tool_calls")
    (call,) = reply.tool_calls
    assert (call.name, json.loads(call.arguments)) == ("f", {"x": 1})
    assert "signature" in reply.message


# OAuth


def test_requests_carry_a_token_that_was_fetched_once(tell, process):
    endpoint = tell(oauth_client=CLIENT)
    for _ in range(3):
        (reply,) = ask(process, endpoint, **OAUTH)
        assert reply.text == "echo: hello"
    assert endpoint.stats()["paths"] == {"/oidc/v1/token": 1, "/serving-endpoints/m/invocations": 3}


def test_a_token_that_ran_out_is_renewed_once_whatever_the_number_of_requests(tell, process):
    endpoint = tell(oauth_client=CLIENT, oauth_token_uses=2)
    replies = [ask(process, endpoint, row(f"p{i}"), **OAUTH)[0] for i in range(5)]
    assert [reply.text for reply in replies] == [f"echo: p{i}" for i in range(5)]
    stats = endpoint.stats()
    assert stats["paths"]["/oidc/v1/token"] == 3
    assert stats["status_counts"] == {"200": 8, "401": 2}
    assert endpoint.billed_by_prompt() == {f"p{i}": 1 for i in range(5)}


def test_a_wrong_secret_stops_the_job_and_is_not_shown(tell, process):
    (error,) = ask(process, tell(oauth_client="an-id:another"), **OAUTH)
    assert type(error) is JobRejected
    assert error.kind == "authentication"
    assert "client_id and client_secret" in error.message
    assert "a secret" not in str(error)


def test_the_driver_hands_over_what_the_worker_cannot_resolve(tell, process, monkeypatch):
    monkeypatch.delenv("CLIENT_ID")
    monkeypatch.delenv("CLIENT_SECRET")
    client_id, _, client_secret = CLIENT.partition(":")
    driver = Driver(**{"env:CLIENT_ID": client_id, "env:CLIENT_SECRET": client_secret})
    endpoint = tell(oauth_client=CLIENT)
    assert ask(process, endpoint, driver=driver, **OAUTH)[0].text == "echo: hello"
    assert driver.asked == ["env:CLIENT_ID", "env:CLIENT_SECRET"]


def test_a_token_of_databricks_sdk_comes_from_the_driver_and_again_after_a_401(tell, process, monkeypatch):
    monkeypatch.setattr("batch_infer.adapters.credentials.secrets.databricks_config", lambda _profile: None)
    endpoint = tell(api_key="second")
    driver = Driver()
    tokens = iter(["first", "second"])
    driver.secret = lambda _call, reference: next(tokens)
    fields = {"provider": "databricks", "api_key": "databricks-sdk:default"}
    assert ask(process, endpoint, driver=driver, **fields)[0].text == "echo: hello"
    assert endpoint.stats()["status_counts"] == {"200": 1, "401": 1}
    assert next(tokens, None) is None


def test_databricks_sdk_itself_authenticates_where_it_finds_credentials(
    endpoint_factory, process, monkeypatch, tmp_path
):
    endpoint = endpoint_factory(api_key=KEY)  # its own: the SDK keeps its connections open
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("DATABRICKS_HOST", endpoint.base_url.removesuffix("/v1"))
    fields = {"provider": "databricks", "api_key": "databricks-sdk:default"}
    (error,) = ask(process, endpoint, **fields)
    assert (type(error), error.kind) == (JobRejected, "authentication")
    assert "'databricks-sdk:default' leads to nothing" in error.message
    monkeypatch.setenv("DATABRICKS_TOKEN", KEY)
    assert ask(process, endpoint, **fields)[0].text == "echo: hello"


def test_a_secret_that_was_replaced_gets_a_token_of_its_own(tell, process, monkeypatch):
    endpoint = tell(oauth_client=CLIENT)
    assert ask(process, endpoint, **OAUTH)[0].text == "echo: hello"
    monkeypatch.setenv("CLIENT_SECRET", "another")
    assert ask(process, endpoint, **OAUTH)[0].kind == "authentication"


def test_a_secret_that_leads_to_nothing_stops_the_job(tell, process, monkeypatch):
    monkeypatch.delenv("CLIENT_SECRET")
    with pytest.raises(JobRejected, match="its client_secret 'env:CLIENT_SECRET' leads to nothing"):
        ask(process, tell(), **OAUTH)


def test_many_requests_at_once_fetch_one_token(tell, process):
    endpoint = tell(oauth_client=CLIENT, latency_s=0.01)
    made = build_endpoint("mine", {"model": "m", "base_url": endpoint.base_url[:-3], **OAUTH, "api_key": None})
    credentials = open_credentials("call", made, process, None)
    transport = credentials.over(process.transport(made))
    wire = open_wire(made, base_url=made.base_url, parameters={}, response_format=None, api_key=None)
    sender = Sender(made, wire, transport, ReplyReader("string"))

    async def many():
        return await asyncio.gather(*(sender([row(f"p{i}")]) for i in range(30)))

    assert len(process.wait(many())) == 30
    assert endpoint.stats()["paths"]["/oidc/v1/token"] == 1


# Custom models

CUSTOM = {"provider": "databricks", "task": "custom"}
RECORDS = [row(json.dumps({"a": i}).encode(), key=str(i)) for i in range(5)]


def test_many_rows_are_one_request_and_each_gets_its_own_prediction(tell, process):
    endpoint = tell(api_key=KEY)
    replies = ask(process, endpoint, *RECORDS, **CUSTOM)
    assert [json.loads(reply.text) for reply in replies] == [{"echo": {"a": i}} for i in range(5)]
    assert endpoint.stats()["requests"] == 1
    assert endpoint.bodies() == [{"dataframe_records": [{"a": i} for i in range(5)]}]


def test_predictions_of_another_type_are_their_rows_errors(tell, process):
    endpoint = tell(api_key=KEY, rules=[Rule(text="0.5")])
    assert [reply.text for reply in ask(process, endpoint, *RECORDS, result_type="double", **CUSTOM)] == ["0.5"] * 5
    errors = ask(process, endpoint, *RECORDS, result_type="integer", **CUSTOM)
    assert {type(error) for error in errors} == {WrongReply}
    assert {error.kind for error in errors} == {"type_mismatch"}


@pytest.mark.parametrize(
    ("rule", "cls", "kind"),
    [
        ({"fault": "short_batch"}, Ambiguous, "malformed_reply"),
        ({"fault": "empty_choices"}, Ambiguous, "malformed_reply"),
        ({"fault": "html_200"}, Ambiguous, "malformed_reply"),
        ({"status": 429, "error": {"error_code": "REQUEST_LIMIT_EXCEEDED"}}, Throttled, "rate_limited"),
        ({"status": 400, "error": {"error_code": "BAD_REQUEST", "message": "no column a"}}, RowRejected, "bad_request"),
    ],
)
def test_each_fault_of_a_custom_model_is_an_error(tell, process, rule, cls, kind):
    (error,) = ask(process, tell(api_key=KEY, rules=[Rule(**rule)]), *RECORDS, **CUSTOM)
    assert type(error) is cls
    assert error.kind == kind

"""The fault endpoint's other dialects, judged by hand-made calls: Anthropic's messages, invocations, OAuth."""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request

import pytest

from batch_infer.testing import Rule

OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def call(endpoint, path, body, **headers):
    """Status and JSON of a POST to a path beside the base URL."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    url = endpoint.base_url.removesuffix("/v1") + path
    request = urllib.request.Request(url, data=data, headers={k.replace("_", "-"): v for k, v in headers.items()})
    try:
        response = OPENER.open(request, timeout=10)
    except urllib.error.HTTPError as error:
        response = error
    with response:
        return response.status, json.loads(response.read())


HELLO = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "hello you"}]}


def test_a_message_and_its_usage(tell):
    endpoint = tell()
    status, reply = call(endpoint, "/v1/messages", HELLO)
    assert status == 200
    assert reply["content"] == [{"type": "text", "text": "echo: hello you"}]
    assert (reply["role"], reply["stop_reason"], reply["model"]) == ("assistant", "end_turn", "m")
    assert reply["usage"] == {"input_tokens": 2, "output_tokens": 3}
    stats = endpoint.stats()
    assert (stats["prompt_tokens"], stats["completion_tokens"], stats["billed_rows"]) == (2, 3, 1)
    assert endpoint.calls_by_prompt() == {"hello you": 1}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"max_tokens": None}, "max_tokens: Field required"),
        ({"messages": [{"role": "system", "content": "x"}]}, 'the parameter "system"'),
        ({"messages": []}, "missing or empty"),
    ],
)
def test_a_message_that_anthropic_would_refuse_is_refused(tell, change, words):
    status, reply = call(tell(), "/v1/messages", {**HELLO, **change})
    assert status == 400
    assert words in reply["error"]["message"]


def test_what_a_message_asks_for_it_gets(tell):
    endpoint = tell()
    tools = [{"name": "f", "input_schema": {"type": "object", "properties": {"x": {"type": "integer"}}}}]
    thinking = {"type": "enabled", "budget_tokens": 3}
    _, reply = call(endpoint, "/v1/messages", {**HELLO, "tools": tools, "thinking": thinking})
    assert [block["type"] for block in reply["content"]] == ["thinking", "text"]
    assert reply["content"][0]["signature"]
    _, reply = call(endpoint, "/v1/messages", {**HELLO, "tools": tools, "tool_choice": {"type": "tool", "name": "f"}})
    assert reply["stop_reason"] == "tool_use"
    assert [(block["name"], block["input"]) for block in reply["content"]] == [("f", {"x": 1})]
    schema = {"type": "object", "properties": {"y": {"const": "z"}}}
    config = {"format": {"type": "json_schema", "schema": schema}}
    _, reply = call(endpoint, "/v1/messages", {**HELLO, "output_config": config})
    assert json.loads(reply["content"][0]["text"]) == {"y": "z"}


def test_invocations_are_told_apart_by_their_bodies(tell):
    endpoint = tell()
    path = "/serving-endpoints/e/served-models/m/invocations"
    _, reply = call(endpoint, path, {"messages": HELLO["messages"]})
    assert reply["choices"][0]["message"]["content"] == "echo: hello you"
    _, reply = call(endpoint, path, {"prompt": "hello"})
    assert reply["choices"][0]["text"] == "echo: hello"
    _, reply = call(endpoint, path, {"input": "hello"})
    assert len(reply["data"]) == 1
    _, reply = call(endpoint, path, {"dataframe_records": [{"b": 1, "a": "x"}, {}]})
    assert reply == {"predictions": [{"echo": {"b": 1, "a": "x"}}, {"echo": {}}]}
    assert endpoint.calls_by_prompt()['{"a": "x", "b": 1}'] == 1


def test_records_that_are_none_are_refused_and_scripted_predictions_given(tell):
    endpoint = tell(rules=[Rule('"a": 7', text="[1, 2]")], max_inputs=2)
    path = "/serving-endpoints/e/invocations"
    for records in ([], [1], "x", [{}, {}, {}]):
        assert call(endpoint, path, {"dataframe_records": records})[0] == 400
    assert call(endpoint, path, {"dataframe_records": [{"a": 7}]})[1] == {"predictions": [[1, 2]]}


def basic(pair):
    return "Basic " + base64.b64encode(pair.encode()).decode()


FORM = b"grant_type=client_credentials&scope=all-apis"


def token(endpoint, pair="i:s", form=FORM):
    return call(endpoint, "/oidc/v1/token", form, authorization=basic(pair))


def test_only_a_token_that_was_issued_passes_and_only_as_often_as_told(tell):
    endpoint = tell(oauth_client="i:s", oauth_token_uses=2, oauth_lifetime_s=60)
    ask = "/serving-endpoints/e/invocations"
    assert call(endpoint, ask, {"prompt": "x"})[0] == 401
    status, answer = token(endpoint)
    assert (status, answer["token_type"], answer["expires_in"]) == (200, "Bearer", 60)
    header = {"authorization": f"Bearer {answer['access_token']}"}
    assert [call(endpoint, ask, {"prompt": "x"}, **header)[0] for _ in range(3)] == [200, 200, 401]
    assert token(endpoint)[1]["access_token"] != answer["access_token"]


def test_a_token_request_that_is_wrong_gets_none(tell):
    endpoint = tell(oauth_client="i:s")
    assert token(endpoint, "i:other")[1]["error"] == "invalid_client"
    assert token(endpoint, form=b"grant_type=password")[0] == 400
    assert token(endpoint, form=b"grant_type=client_credentials")[0] == 400
    assert call(tell(), "/oidc/v1/token", FORM)[0] == 404

"""Azure's, Databricks' and custom models' wire formats, and which one an endpoint gets."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_infer.adapters.providers.calls import open_wire
from batch_infer.adapters.providers.registry import build_endpoint
from batch_infer.contract.content import canonical_messages
from batch_infer.contract.errors import Ambiguous, RowRejected
from batch_infer.contract.request import Request
from batch_infer.contract.result_types import read_reply


def wire(parameters=None, response_format=None, **fields):
    endpoint = build_endpoint("mine", fields)
    return open_wire(
        endpoint,
        base_url=endpoint.base_url,
        parameters=parameters or {},
        response_format=response_format,
        api_key="secret",
    )


def row(content="hello"):
    return Request(key="k", content=content)


AZURE = {"provider": "azure", "base_url": "https://x.openai.azure.com", "model": "my dep/1"}
WORKSPACE = "https://x.cloud.databricks.com"
DATABRICKS = {"provider": "databricks", "base_url": WORKSPACE, "model": "my-endpoint"}


@pytest.mark.parametrize(
    ("task", "path"), [("chat", "chat/completions"), ("completions", "completions"), ("embeddings", "embeddings")]
)
def test_azure_names_the_deployment_in_the_path_and_the_key_in_a_header_of_its_own(task, path):
    made = wire(**AZURE, task=task, api_version="2024-10-21")
    address = f"https://x.openai.azure.com/openai/deployments/my%20dep%2F1/{path}?api-version=2024-10-21"
    assert made.url == address
    assert made.headers["api-key"] == "secret"
    assert "authorization" not in made.headers
    with_openai = {**AZURE, "base_url": "https://x.openai.azure.com/openai/"}
    assert wire(**with_openai, task=task, api_version="2024-10-21").url == address


def test_azures_versionless_api_has_openais_paths():
    made = wire(**{**AZURE, "base_url": "https://x.openai.azure.com/openai/v1/"})
    assert made.url == "https://x.openai.azure.com/openai/v1/chat/completions"
    assert made.headers["api-key"] == "secret"
    assert json.loads(made.encode([row()]))["model"] == "my dep/1"


@pytest.mark.parametrize("base_url", [WORKSPACE, WORKSPACE + "/", WORKSPACE + "/serving-endpoints"])
def test_databricks_has_one_path_for_an_endpoint(base_url):
    for task in ("chat", "completions", "embeddings", "custom"):
        made = wire(**{**DATABRICKS, "base_url": base_url, "task": task})
        assert made.url == f"{WORKSPACE}/serving-endpoints/my-endpoint/invocations"
        assert made.headers["authorization"] == "Bearer secret"


def test_databricks_one_model_of_several_behind_an_endpoint():
    made = wire(**{**DATABRICKS, "model": "my endpoint/model-2"})
    assert made.url == f"{WORKSPACE}/serving-endpoints/my%20endpoint/served-models/model-2/invocations"


def test_databricks_bodies_do_not_name_the_model():
    assert json.loads(wire(**DATABRICKS).encode([row()])) == {"messages": [{"role": "user", "content": "hello"}]}
    assert json.loads(wire({"max_tokens": 5}, **DATABRICKS, task="completions").encode([row()])) == {
        "max_tokens": 5, "prompt": "hello",
    }  # fmt: skip
    assert json.loads(wire(**DATABRICKS, task="embeddings").encode([row("a"), row("b")])) == {"input": ["a", "b"]}
    form = {"type": "json_object"}
    assert json.loads(wire(None, form, **DATABRICKS).encode([row()]))["response_format"] == form


@given(st.text(st.characters(exclude_categories=["Cs"])), st.dictionaries(st.text(), st.integers(), max_size=3))
def test_any_body_is_json_with_the_prompt_as_it_is(prompt, parameters):
    sent = json.loads(wire(parameters, **DATABRICKS, task="completions").encode([row(prompt)]))
    assert sent == {**parameters, "prompt": prompt}


# Custom models


def custom(parameters=None):
    return wire(parameters, **DATABRICKS, task="custom")


RECORDS = [b'{"a":1,"b":"x"}', b'{"a":2.50,"b":null}']
ROWS = [row(record) for record in RECORDS]


def test_rows_are_records_as_they_are_and_parameters_stand_apart():
    assert custom().encode(ROWS) == b'{"dataframe_records":[{"a":1,"b":"x"},{"a":2.50,"b":null}]}'
    assert json.loads(custom({"top_k": 3}).encode(ROWS[:1])) == {
        "dataframe_records": [{"a": 1, "b": "x"}], "params": {"top_k": 3},
    }  # fmt: skip


def predicted(predictions, rows=ROWS):
    return custom().decode(json.dumps({"predictions": predictions}).encode(), rows)


@pytest.mark.parametrize(
    ("prediction", "kind", "value"),
    [
        (0.25, "double", 0.25),
        (7, "integer", 7),
        (True, "boolean", True),
        ("spam", "string", "spam"),
        ("7", "integer", 7),
        (
            {"label": "spam", "score": 0.5},
            {
                "type": "struct",
                "fields": [{"name": "label", "type": "string"}, {"name": "score", "type": "double"}],
            },
            {"label": "spam", "score": 0.5},
        ),
        ([1.0, 2.0], {"type": "array", "elementType": "double"}, [1.0, 2.0]),
    ],
    ids=str,
)
def test_a_prediction_reads_as_the_type_asked_for(prediction, kind, value):
    first, second = predicted([prediction, prediction])
    assert read_reply(first.text, kind) == value
    assert second.text == first.text
    assert first.model == "my-endpoint"


def test_a_predictions_text_is_its_json_unmodified():
    body = b'{"predictions": [ {"p": 1.50, "big": 12345678901234567890123} , [ 1 ] ]}'
    first, second = custom().decode(body, ROWS)
    assert (first.text, second.text) == ('{"p": 1.50, "big": 12345678901234567890123}', "[ 1 ]")


def test_a_prediction_that_is_no_list_is_that_of_a_single_row():
    (result,) = predicted({"label": "spam"}, ROWS[:1])
    assert json.loads(result.text) == {"label": "spam"}


def test_a_null_prediction_is_that_rows_error():
    first, second = predicted([None, 1])
    assert type(first) is RowRejected
    assert first.kind == "empty_reply"
    assert second.text == "1"
    assert predicted(["", 1])[0].kind == "empty_reply"


@pytest.mark.parametrize("predictions", [[], [1], [1, 2, 3], {"a": [1, 2]}, 5, None], ids=str)
def test_predictions_that_cannot_be_matched_with_their_rows_are_no_result(predictions):
    with pytest.raises(Ambiguous) as raised:
        predicted(predictions)
    assert raised.value.kind == "malformed_reply"
    assert "2 records were sent" in raised.value.message


def test_an_error_in_a_200_is_an_error():
    with pytest.raises(Ambiguous, match="crashed"):
        custom().decode(b'{"error": {"message": "It crashed."}}', ROWS)


@given(st.binary(max_size=200))
def test_any_reply_is_a_result_or_an_error_of_ours(data):
    try:
        custom().decode(data, ROWS)
    except Ambiguous as error:
        assert error.status == 200


# Which one


def test_gemini_and_openai_are_one_format():
    made = wire(provider="gemini", model="gemini-x")
    assert made.url == "https://generativelanguage.googleapis.com/v1beta/openai/chat/completions"
    assert made.headers["authorization"] == "Bearer secret"


def test_messages_go_as_they_are_whatever_the_provider():
    messages = [{"role": "user", "content": [{"type": "text", "text": "x"}]}]
    content = canonical_messages(messages)
    for fields in (DATABRICKS, {**AZURE, "api_version": "1"}, {"provider": "anthropic", "model": "m"}):
        assert json.loads(wire(**fields).encode([row(content)]))["messages"] == messages

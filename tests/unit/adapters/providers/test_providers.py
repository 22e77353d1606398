"""What an endpoint's provider needs and cannot do is said before any call, with the endpoint and the field."""

import pytest

from batch_infer.adapters.providers.registry import build_endpoint
from batch_infer.contract.errors import ConfigError

WORKSPACE = "https://x.cloud.databricks.com"
AZURE = {"provider": "azure", "base_url": "https://x.openai.azure.com", "model": "m"}
DATABRICKS = {"provider": "databricks", "base_url": WORKSPACE, "model": "m"}
OAUTH = {"client_id": "env:ID", "client_secret": "env:SECRET"}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model": "m"}, "the field 'base_url' is missing. Give the address up to and without '/chat/completions'"),
        ({"provider": "databricks", "model": "m"}, "the workspace's"),
        ({"provider": "azure", "model": "m"}, "the resource's"),
        (AZURE, "field 'api_version': it is missing"),
        ({**AZURE, "base_url": AZURE["base_url"] + "/openai/v1", "api_version": "1"}, "leave it out"),
        ({**AZURE, "api_version": "2024?x=1"}, "field 'api_version'"),
        ({**AZURE, "api_version": "1", "task": "custom"}, "provider 'azure' has no 'custom'"),
        ({"provider": "anthropic", "model": "m", "task": "embeddings"}, "its tasks are: chat"),
        ({"provider": "gemini", "model": "m", "task": "completions"}, "its tasks are: chat, embeddings"),
        ({"base_url": "https://x/v1", "model": "m", "task": "custom"}, "provider 'openai' has no 'custom'"),
        ({"base_url": "https://x/v1", "model": "m", "api_version": "1"}, "it is for 'azure'"),
        ({"base_url": "https://x/v1", "model": "m", **OAUTH}, "field 'client_id': provider 'openai'"),
        ({**DATABRICKS, "client_id": "env:ID"}, "'client_secret' is missing"),
        ({**DATABRICKS, "client_secret": "env:SECRET"}, "'client_id' is missing"),
        ({**DATABRICKS, **OAUTH, "api_key": "env:TOKEN"}, "one kind of credentials"),
        ({**DATABRICKS, "client_id": "x", "client_secret": "env:S"}, "field 'client_id'"),
    ],
    ids=str,
)
def test_refusals(fields, words):
    with pytest.raises(ConfigError) as refused:
        build_endpoint("mine", fields)
    assert "endpoint 'mine'" in str(refused.value)
    assert words in str(refused.value)


def test_default_addresses_can_be_replaced():
    assert build_endpoint("e", {"provider": "anthropic", "model": "m"}).base_url == "https://api.anthropic.com"
    given = {"provider": "anthropic", "model": "m", "base_url": "http://localhost:1"}
    assert build_endpoint("e", given).base_url == "http://localhost:1"


def test_what_decides_replies_is_in_the_identity():
    one, two = (build_endpoint("e", {**AZURE, "api_version": version}) for version in ("1", "2"))
    assert one.identity != two.identity
    with_key, with_oauth = (
        build_endpoint("e", {**DATABRICKS, "api_key": "env:T"}),
        build_endpoint("e", {**DATABRICKS, **OAUTH}),
    )
    assert with_key.identity == with_oauth.identity == ("databricks", WORKSPACE, "m")


def test_every_secret_is_a_reference_that_the_driver_may_hand_over():
    assert [str(secret) for secret in build_endpoint("e", {**DATABRICKS, **OAUTH}).secrets] == ["env:ID", "env:SECRET"]
    assert [str(s) for s in build_endpoint("e", {**DATABRICKS, "api_key": "databricks-sdk:default"}).secrets] == [
        "databricks-sdk:default"
    ]
    assert build_endpoint("e", DATABRICKS).secrets == ()

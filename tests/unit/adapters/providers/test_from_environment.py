"""'provider/model' without registration: addresses and references from the providers' own environment variables."""

import sys
import types

import pytest

from batch_infer.adapters.providers import databricks as module
from batch_infer.adapters.providers.registry import find_endpoint
from batch_infer.contract.errors import ConfigError

HOST = "https://x.cloud.databricks.com"


@pytest.fixture
def no_sdk(monkeypatch):
    monkeypatch.setattr(module, "databricks_config", lambda: None)
    monkeypatch.setattr(module, "_has_databricks_sdk", lambda: False)


def test_anthropic(monkeypatch):
    found = find_endpoint("anthropic/claude-x", {})
    assert (found.provider, found.base_url, found.model, found.task) == (
        "anthropic", "https://api.anthropic.com", "claude-x", "chat",
    )  # fmt: skip
    assert found.api_key == "env:ANTHROPIC_API_KEY"
    monkeypatch.setenv("ANTHROPIC_BASE_URL", "http://localhost:1/anthropic")
    assert find_endpoint("anthropic/claude-x", {}).base_url == "http://localhost:1/anthropic"


def test_gemini():
    found = find_endpoint("gemini/gemini-x", {})
    assert (found.base_url, found.task) == ("https://generativelanguage.googleapis.com/v1beta/openai", "chat")
    assert found.api_key == "env:GEMINI_API_KEY"
    assert find_endpoint("gemini/gemini-embedding-001", {}).task == "embeddings"


def test_azure(monkeypatch):
    with pytest.raises(ConfigError, match="set AZURE_OPENAI_ENDPOINT"):
        find_endpoint("azure/dep", {})
    monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", "https://x.openai.azure.com/")
    with pytest.raises(ConfigError, match="set OPENAI_API_VERSION"):
        find_endpoint("azure/dep", {})
    monkeypatch.setenv("OPENAI_API_VERSION", "2024-10-21")
    found = find_endpoint("azure/dep", {})
    assert (found.base_url, found.api_version) == ("https://x.openai.azure.com", "2024-10-21")
    assert found.api_key == "env:AZURE_OPENAI_API_KEY"
    monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", "https://x.openai.azure.com/openai/v1/")
    found = find_endpoint("azure/dep", {})
    assert (found.base_url, found.api_version) == ("https://x.openai.azure.com/openai/v1", None)


def test_an_empty_address_of_anthropic_is_none(monkeypatch):
    monkeypatch.setenv("ANTHROPIC_BASE_URL", "")
    assert find_endpoint("anthropic/claude", {}).base_url == "https://api.anthropic.com"


def test_databricks_with_a_token(monkeypatch):
    monkeypatch.setenv("DATABRICKS_HOST", HOST)
    monkeypatch.setenv("DATABRICKS_TOKEN", "t")
    monkeypatch.setenv("DATABRICKS_CLIENT_ID", "i")
    monkeypatch.setenv("DATABRICKS_CLIENT_SECRET", "s")
    found = find_endpoint("databricks/my-endpoint", {})
    assert (found.provider, found.base_url, found.model, found.task) == ("databricks", HOST, "my-endpoint", "chat")
    assert (found.api_key, found.client_id) == ("env:DATABRICKS_TOKEN", None)
    assert find_endpoint("databricks/my-endpoint/one-model", {}).model == "my-endpoint/one-model"
    for name in ("databricks-gte-large-en", "databricks-bge-large-en", "my-embedder"):
        assert find_endpoint(f"databricks/{name}", {}).task == "embeddings"


def test_databricks_with_a_service_principal(monkeypatch):
    monkeypatch.setenv("DATABRICKS_HOST", "x.cloud.databricks.com")
    monkeypatch.setenv("DATABRICKS_CLIENT_ID", "i")
    monkeypatch.setenv("DATABRICKS_CLIENT_SECRET", "s")
    found = find_endpoint("databricks/e", {})
    assert found.base_url == HOST
    assert (found.api_key, found.client_id, found.client_secret) == (
        None, "env:DATABRICKS_CLIENT_ID", "env:DATABRICKS_CLIENT_SECRET",
    )  # fmt: skip
    assert [str(secret) for secret in found.secrets] == ["env:DATABRICKS_CLIENT_ID", "env:DATABRICKS_CLIENT_SECRET"]


def test_databricks_through_the_sdk(monkeypatch):
    """Neither token nor service principal: databricks-sdk knows the host and how to authenticate."""
    config = types.ModuleType("databricks.sdk.config")
    config.Config = lambda **bounds: types.SimpleNamespace(host=HOST)
    monkeypatch.setitem(sys.modules, "databricks.sdk.config", config)
    monkeypatch.setattr(module, "_has_databricks_sdk", lambda: True)
    found = find_endpoint("databricks/e", {})
    assert (found.base_url, found.api_key) == (HOST, "databricks-sdk:default")


def test_databricks_without_anything(no_sdk, monkeypatch):
    with pytest.raises(ConfigError, match="set DATABRICKS_HOST"):
        find_endpoint("databricks/e", {})
    monkeypatch.setenv("DATABRICKS_HOST", HOST)
    assert find_endpoint("databricks/e", {}).api_key == "env:DATABRICKS_TOKEN"

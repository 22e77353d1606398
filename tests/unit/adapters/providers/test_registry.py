"""Where endpoints come from, which place wins, and what an unknown name is told."""

import dataclasses
import inspect

import pytest

from batch_infer.adapters.providers import registry
from batch_infer.adapters.providers.registry import FILE_SETTING, FILE_VARIABLE, find_endpoint, register_endpoint
from batch_infer.contract.endpoint import Endpoint
from batch_infer.contract.errors import ConfigError

URL = "https://api.example.com/v1"


@pytest.fixture(autouse=True)
def _empty(monkeypatch):
    monkeypatch.setattr(registry, "_registered", {})


def settings(name, **fields):
    return {f"spark.batch_infer.endpoint.{name}.{field}": str(value) for field, value in fields.items()}


@pytest.fixture
def write_file(tmp_path):
    def write(text):
        path = tmp_path / "endpoints.toml"
        path.write_text(text, encoding="utf-8")
        return {FILE_SETTING: str(path)}

    return write


def refusal(name, given=None):
    with pytest.raises(ConfigError) as refused:
        find_endpoint(name, given or {})
    return str(refused.value)


def test_a_registered_endpoint_is_found_and_registering_again_replaces_it():
    assert register_endpoint("mine", base_url=URL, model="a").model == "a"
    register_endpoint("mine", base_url=URL, model="b")
    assert find_endpoint("mine", {}).model == "b"


def test_a_bad_registration_leaves_the_earlier_one():
    register_endpoint("mine", base_url=URL, model="a")
    with pytest.raises(ConfigError):
        register_endpoint("mine", base_url=URL, model="b", timeout_s=-1)
    assert find_endpoint("mine", {}).model == "a"


def test_settings_make_an_endpoint_and_names_may_hold_dots():
    given = settings("team.chat", base_url=URL, model="m", requests_per_minute="60") | {
        "spark.batch_infer.ledger": "off"
    }
    found = find_endpoint("team.chat", given)
    assert (found.name, found.model, found.requests_per_minute) == ("team.chat", "m", 60)


def test_bad_settings_name_the_endpoint_and_the_field():
    message = refusal("x", settings("x", base_url=URL, model="m", max_concurrency="many"))
    assert "endpoint 'x', field 'max_concurrency'" in message
    assert "'many'" in message
    assert "<name>.<field>" in refusal("x", {"spark.batch_infer.endpoint.model": "m"})


def test_one_bad_endpoint_does_not_break_another():
    given = settings("good", base_url=URL, model="m") | settings("bad", base_url="x")
    assert find_endpoint("good", given).model == "m"


def test_a_file_makes_endpoints(write_file):
    given = write_file(f'[endpoint.mine]\nbase_url = "{URL}"\nmodel = "m"\nmax_concurrency = 7\n')
    assert find_endpoint("mine", given).max_concurrency == 7


def test_the_file_may_be_named_in_the_environment(write_file, monkeypatch):
    given = write_file(f'[endpoint.mine]\nbase_url = "{URL}"\nmodel = "m"\n')
    monkeypatch.setenv(FILE_VARIABLE, given[FILE_SETTING])
    assert find_endpoint("mine", {}).model == "m"


def test_python_wins_over_settings_and_settings_over_the_file(write_file):
    in_file = write_file(f'[endpoint.mine]\nbase_url = "{URL}"\nmodel = "file"\n')
    in_settings = settings("mine", base_url=URL, model="settings")
    assert find_endpoint("mine", in_file).model == "file"
    assert find_endpoint("mine", in_file | in_settings).model == "settings"
    register_endpoint("mine", base_url=URL, model="python")
    assert find_endpoint("mine", in_file | in_settings).model == "python"


def test_a_registered_name_wins_over_provider_and_model():
    register_endpoint("openai/gpt-x", base_url=URL, model="mine")
    assert find_endpoint("openai/gpt-x", {}).model == "mine"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("not toml", "is not TOML"),
        ("[endpoints.mine]\nmodel='m'", "unknown table 'endpoints'"),
        ("endpoint = 3", "not a table of tables"),
        ("[endpoint]\nmodel = 'm'", "not a table of tables"),
    ],
)
def test_a_malformed_file_is_refused_with_its_path(write_file, text, words):
    message = refusal("mine", write_file(text))
    assert "endpoints.toml" in message
    assert words in message


def test_a_missing_file_is_refused_with_its_path(tmp_path):
    message = refusal("mine", {FILE_SETTING: str(tmp_path / "absent.toml")})
    assert "absent.toml" in message
    assert "cannot be read" in message


def test_openai_models_need_no_registration():
    found = find_endpoint("openai/gpt-x", {})
    assert (found.base_url, found.model, found.task) == ("https://api.openai.com/v1", "gpt-x", "chat")
    assert found.api_key == "env:OPENAI_API_KEY"
    assert find_endpoint("openai/text-embedding-x", {}).task == "embeddings"
    assert find_endpoint("openai/org/model", {}).model == "org/model"


def test_the_providers_own_variable_gives_the_address(monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:8000/v1")
    assert find_endpoint("openai/gpt-x", {}).base_url == "http://localhost:8000/v1"


def test_the_local_models_need_no_registration():
    assert find_endpoint("local/chat", {}).task == "chat"
    embed = find_endpoint("local/embed", {})
    assert (embed.task, embed.provider, embed.api_key) == ("embeddings", "local", None)
    assert embed.cost_usd(10, 10, 0) == 0


def test_an_unknown_name_is_told_the_nearest_one_and_all():
    register_endpoint("summaries", base_url=URL, model="m")
    message = refusal("sumaries", settings("other", base_url=URL, model="m"))
    assert "no endpoint 'sumaries'" in message
    assert "Did you mean 'summaries'?" in message
    for known in ("other", "summaries", "local/chat", "local/embed", "openai/<model>"):
        assert known in message
    assert "Did you mean 'local/chat'?" in refusal("local/chatt")


def test_an_unknown_provider_is_told_all_of_them():
    message = refusal("anthropci/claude-x")
    assert "'anthropci' is no provider. Did you mean 'anthropic'?" in message
    for provider in ("openai", "azure", "databricks", "anthropic", "gemini"):
        assert f"'{provider}/<model>'" in message
    assert "is no provider" not in refusal("plain-name")


@pytest.mark.parametrize("name", ["nobody/model", "local/other", "openai/", "/", "zzz"])
def test_other_names_are_unknown(name):
    assert f"no endpoint {name!r}" in refusal(name)


def test_the_arguments_of_register_endpoint_are_the_fields_of_an_endpoint():
    given = list(inspect.signature(registry.register_endpoint).parameters)
    assert given == [field.name for field in dataclasses.fields(Endpoint)]


def test_a_misspelt_argument_names_the_nearest_one():
    with pytest.raises(ConfigError, match="Did you mean 'requests_per_minute'?") as refused:
        registry.register_endpoint("e", base_url="https://example.com/v1", model="m", request_per_minute=5)
    assert isinstance(refused.value, TypeError)


def test_headers_and_query_can_be_set_name_by_name_in_spark_settings():
    settings = {
        "spark.batch_infer.endpoint.my.gateway.base_url": "https://gateway.example.com/v1",
        "spark.batch_infer.endpoint.my.gateway.model": "m",
        "spark.batch_infer.endpoint.my.gateway.headers.X-Api.Key": "env:GATEWAY_KEY",
        "spark.batch_infer.endpoint.my.gateway.headers.X-Team": "blue",
        "spark.batch_infer.endpoint.my.gateway.query.version": "2",
    }
    found = registry.find_endpoint("my.gateway", settings)
    assert dict(found.headers) == {"X-Api.Key": "env:GATEWAY_KEY", "X-Team": "blue"}
    assert found.query == (("version", "2"),)

"""Endpoints: what each field may hold, what refusals say, identity, prices."""

import pickle
from dataclasses import fields

import pytest

from batch_infer.adapters.providers.registry import build_endpoint
from batch_infer.contract.endpoint import Endpoint
from batch_infer.contract.errors import ConfigError

GOOD = {"base_url": "https://api.example.com/v1", "model": "m"}
LITERAL_KEY = "sk-" + "proj-" + "a1B2" * 10


def refusal(name="mine", **fields):
    with pytest.raises(ConfigError) as refused:
        build_endpoint(name, {**GOOD, **fields})
    return str(refused.value)


BAD = [
    ("provider", "opanai", "one of 'openai', 'azure', 'databricks', 'anthropic', 'gemini', 'vertex'"),
    ("task", "chats", "one of 'chat', 'completions', 'embeddings', 'custom'"),
    ("base_url", "api.example.com/v1", "http or https URL"),
    ("base_url", "ftp://example.com", "http or https URL"),
    ("base_url", "https://", "http or https URL"),
    ("base_url", "http://localhost:notaport/v1", "http or https URL"),
    ("base_url", "http://[::1", "http or https URL"),
    ("base_url", " https://api.example.com/v1", "http or https URL"),
    ("base_url", "https://api.example.com/v1?key=1", "without '?' and '#'"),
    ("model", "", "text, and not empty"),
    ("model", 7, "text, and not empty"),
    ("requests_per_minute", 0, "a number above 0"),
    ("requests_per_minute", -1, "a number above 0"),
    ("requests_per_minute", "many", "a number above 0"),
    ("requests_per_minute", float("nan"), "a number above 0"),
    ("requests_per_minute", float("inf"), "a number above 0"),
    ("requests_per_minute", True, "a number above 0"),
    ("tokens_per_minute", 0, "a number above 0"),
    ("tokens_per_minute", [], "a number above 0"),
    ("max_concurrency", 0, "a whole number of at least 1"),
    ("max_concurrency", 1.5, "a whole number of at least 1"),
    ("max_concurrency", "1.5", "a whole number of at least 1"),
    ("timeout_s", 0, "a number above 0"),
    ("connect_timeout_s", "soon", "a number above 0"),
    ("max_attempts", 0, "a whole number of at least 1"),
    ("max_ambiguous_retries", -1, "a whole number of at least 0"),
    ("throttle_deadline_s", -1, "a number of at least 0"),
    ("inputs_per_request", 0, "a whole number of at least 1"),
    ("tokens_per_request", "x", "a whole number of at least 1"),
    ("usd_per_million_prompt_tokens", -0.1, "a number of at least 0"),
    ("usd_per_million_completion_tokens", "free", "a number of at least 0"),
    ("usd_per_million_cached_tokens", -1, "a number of at least 0"),
    ("transport", "requests", "'pyreqwest', 'httpx', or 'package.module:factory'"),
    ("transport", ":", "'pyreqwest', 'httpx', or 'package.module:factory'"),
    ("ca_file", "", "text, and not empty"),
    ("allow_http", "maybe", "true or false"),
    ("allow_http", 1, "true or false"),
]


@pytest.mark.parametrize(("field", "value", "allowed"), BAD, ids=lambda value: str(value)[:30])
def test_a_bad_field_is_refused_with_the_endpoint_the_field_the_value_and_what_is_allowed(field, value, allowed):
    message = refusal(**{field: value})
    assert "'mine'" in message
    assert f"'{field}'" in message
    assert repr(value) in message
    assert allowed in message


def test_a_literal_key_is_refused_and_never_repeated():
    for value in (LITERAL_KEY, f"Bearer {LITERAL_KEY}", f"env:{LITERAL_KEY}", 12345678, ""):
        message = refusal(api_key=value)
        assert "'mine'" in message
        assert "'api_key'" in message
        assert "env:" in message
        assert LITERAL_KEY not in message
        assert "12345678" not in message


def test_credentials_in_the_url_are_refused_and_never_repeated():
    for url in ("https://user:hunter2@example.com/v1", "https://hunter2@example.com", "http://a:hunter2@[::1"):
        message = refusal(base_url=url)
        assert "hunter2" not in message
        assert "api_key" in message


def test_an_unknown_field_names_the_nearest_one_and_all():
    message = refusal(request_per_minute=5)
    assert "no field 'request_per_minute'" in message
    assert "Did you mean 'requests_per_minute'?" in message
    assert "max_concurrency" in message


@pytest.mark.parametrize("name", ["", " ", "a ", " a"])
def test_a_name_of_nothing_or_with_spaces_around_it_is_refused(name):
    assert "endpoint name" in refusal(name)


def test_a_model_and_an_address_are_needed():
    with pytest.raises(ConfigError, match="'base_url' is missing"):
        build_endpoint("e", {"model": "m"})
    with pytest.raises(ConfigError, match="'model' is missing"):
        build_endpoint("e", {"base_url": "https://example.com"})
    assert build_endpoint("e", {"provider": "local", "model": "m"}).base_url == ""


def test_plain_http_to_another_host_is_refused_unless_allowed():
    message = refusal(base_url="http://models.internal:8000/v1")
    assert "'models.internal'" in message
    assert "allow_http" in message
    assert build_endpoint("e", {**GOOD, "base_url": "http://models.internal", "allow_http": True}).allow_http
    for host in ("localhost", "127.0.0.1:8000", "[::1]:8000"):
        build_endpoint("e", {**GOOD, "base_url": f"http://{host}/v1"})


def test_text_from_settings_becomes_the_fields_own_types():
    made = build_endpoint(
        "e",
        {
            **GOOD,
            "requests_per_minute": "600",
            "max_concurrency": "32",
            "timeout_s": "1.5",
            "allow_http": "TRUE",
            "max_ambiguous_retries": "0",
            "usd_per_million_prompt_tokens": "0.15",
            "api_key": "env:KEY",
        },
    )
    assert (made.requests_per_minute, made.max_concurrency, made.timeout_s) == (600.0, 32, 1.5)
    assert isinstance(made.max_concurrency, int)
    assert (made.allow_http, made.max_ambiguous_retries, made.usd_per_million_prompt_tokens) == (True, 0, 0.15)
    assert made.api_key == "env:KEY"


def test_none_means_the_default():
    assert build_endpoint("e", {**GOOD, "api_key": None, "timeout_s": None}) == build_endpoint("e", GOOD)


def test_an_endpoint_is_frozen_and_pickles():
    made = build_endpoint("e", {**GOOD, "api_key": "file:/run/key"})
    assert pickle.loads(pickle.dumps(made)) == made
    with pytest.raises(AttributeError):
        made.model = "other"


def test_identity_is_provider_address_and_model_and_nothing_else():
    first = build_endpoint("a", {**GOOD, "api_key": "env:A", "requests_per_minute": 5, "timeout_s": 1})
    second = build_endpoint("b", {**GOOD, "base_url": GOOD["base_url"] + "/", "max_concurrency": 9})
    assert first.identity == second.identity == ("openai", "https://api.example.com/v1", "m")
    assert build_endpoint("a", {**GOOD, "model": "n"}).identity != first.identity
    assert build_endpoint("a", {**GOOD, "base_url": "https://other.example.com"}).identity != first.identity


def priced(**prices):
    return Endpoint(name="e", base_url="https://x", model="m", **prices)


def test_cost_is_prompt_cached_and_completion_tokens_at_their_prices():
    endpoint = priced(
        usd_per_million_prompt_tokens=2.0, usd_per_million_completion_tokens=8.0, usd_per_million_cached_tokens=0.5
    )
    assert endpoint.cost_usd(1_000_000, 500_000, 400_000) == pytest.approx(0.6 * 2 + 0.4 * 0.5 + 0.5 * 8)
    assert endpoint.cost_usd(100, 0, 400) == pytest.approx(100 * 0.5 / 1e6)  # never more cached than there are


def test_cost_is_unknown_where_a_needed_price_or_count_is():
    assert priced().cost_usd(10, 10, 0) is None
    assert priced(usd_per_million_prompt_tokens=1.0).cost_usd(None, 10, 0) is None
    assert priced(usd_per_million_prompt_tokens=1.0).cost_usd(10, 10, 0) is None
    assert priced(usd_per_million_prompt_tokens=1.0).cost_usd(10, None, None) == pytest.approx(1e-5)  # embeddings
    assert priced(usd_per_million_prompt_tokens=1.0).cost_usd(10, 0, 5) == pytest.approx(1e-5)  # cached as others
    assert priced(usd_per_million_prompt_tokens=0.0, usd_per_million_completion_tokens=0.0).cost_usd(1, 1, 0) == 0


@pytest.mark.parametrize("end", ["/chat/completions", "/embeddings", "/completions"])
def test_a_tasks_path_at_the_end_of_an_address_is_cut_and_said_once(caplog, end):
    address = f"https://cut{end.replace('/', '-')}.example.com/v1"
    for _ in range(2):
        assert build_endpoint("e", {**GOOD, "base_url": address + end}).base_url == address
    said = [record.message for record in caplog.records if address in record.message]
    assert len(said) == 1
    assert end in said[0]


def test_a_query_in_an_address_is_refused_with_its_place_and_without_secrets():
    message = refusal(base_url=f"https://example.com/v1?api_key={LITERAL_KEY}")
    assert "'query'" in message
    assert LITERAL_KEY not in message


def test_headers_and_query_are_pairs_whose_references_are_secrets_of_the_endpoint():
    given = {"headers": {"X-Key": "env:GATEWAY_KEY", "X-Team": "blue"}, "query": '{"v": "2", "k": "file:/run/k"}'}
    made = build_endpoint("e", {**GOOD, **given})
    assert made.headers == (("X-Key", "env:GATEWAY_KEY"), ("X-Team", "blue"))
    assert made.query == (("v", "2"), ("k", "file:/run/k"))
    assert [str(secret) for secret in made.secrets] == ["env:GATEWAY_KEY", "file:/run/k"]
    assert made.identity == ("openai", "https://api.example.com/v1?v=2", "m")
    assert pickle.loads(pickle.dumps(made)) == made
    assert hash(made)


@pytest.mark.parametrize(
    "value",
    [{"X-Key": LITERAL_KEY}, {"X Key": "a"}, {"": "a"}, {"a": 1}, {"a": "line\nbreak"}, "no json", 7, ["ab", "c"]],
)
def test_headers_that_are_no_names_and_values_or_hold_a_key_are_refused(value):
    message = refusal(headers=value)
    assert "'headers'" in message
    assert LITERAL_KEY not in message


def test_help_shows_the_text_of_every_field():
    for field in fields(Endpoint):
        assert f"{field.name}: " in Endpoint.__doc__

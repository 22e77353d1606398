"""References to secrets: what is one, what is refused, and that refusals never repeat what they were given."""

import pickle
import random
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batch_infer.contract.errors import ConfigError
from batch_infer.contract.secret import SecretReference, looks_like_a_secret

BASE62 = string.ascii_letters + string.digits


def fake(prefix, length, alphabet=BASE62):
    """A key that no vendor issued, put together here so that no scanner takes this file for a leak."""
    return prefix + "".join(random.Random(length).choices(alphabet, k=length))


LITERALS = {
    "openai": fake("sk-" + "proj-", 48),
    "anthropic": fake("sk-" + "ant-api03-", 80),
    "databricks": fake("dap" + "i", 32, "0123456789abcdef"),
    "databricks-suffix": fake("dap" + "i", 32, "0123456789abcdef") + "-2",
    "google": fake("AI" + "za", 35),
    "github": fake("gh" + "p_", 36),
    "github-fine": fake("github" + "_pat_", 60),
    "slack": "xox" + "b-1234567890-abcdef",
    "aws": fake("AK" + "IA", 16, string.ascii_uppercase + string.digits),
    "groq": fake("gs" + "k_", 52),
    "jwt": "ey" + "JhbGciOiJIUzI1NiJ9.e30.abc",
    "header": "Bearer " + fake("", 20),
    "header-lower": "bearer abc",
    "hex": fake("", 40, "0123456789abcdef"),
    "base64": fake("", 43) + "=",
    "padded": "  " + fake("sk-", 30) + "\n",
    "pem": "-----BEGIN PRIVATE KEY-----",
}


@pytest.mark.parametrize(
    ("text", "scheme", "locator"),
    [
        ("env:OPENAI_API_KEY", "env", "OPENAI_API_KEY"),
        ("env:hf_token", "env", "hf_token"),
        ("env:SK_API_KEY", "env", "SK_API_KEY"),
        ("env:myServiceOpenAiKeyForProduction2024Europe", "env", "myServiceOpenAiKeyForProduction2024Europe"),
        ("file:/run/secrets/openai", "file", "/run/secrets/openai"),
        ("file:/mnt/with space/k:1", "file", "/mnt/with space/k:1"),
        ("file:/run/4f9a0c3b2d1e5f60718293a4b5c6d7e8/key", "file", "/run/4f9a0c3b2d1e5f60718293a4b5c6d7e8/key"),
        ("databricks:prod/openai-key", "databricks", "prod/openai-key"),
        ("databricks:prod/sk-prod", "databricks", "prod/sk-prod"),
        ("  env:A\n", "env", "A"),
    ],
)
def test_references_are_read(text, scheme, locator):
    reference = SecretReference.parse(text)
    assert (reference.scheme, reference.locator) == (scheme, locator)
    assert str(reference) == text.strip()
    assert SecretReference.parse(str(reference)) == reference
    assert pickle.loads(pickle.dumps(reference)) == reference
    assert repr(reference) == f"SecretReference({text.strip()!r})"
    assert len({reference, SecretReference.parse(text)}) == 1


def test_databricks_references_have_two_halves():
    assert SecretReference.parse("databricks:prod/openai").scope_and_key == ("prod", "openai")


@pytest.mark.parametrize("name", LITERALS)
def test_literal_keys_are_refused_without_repeating_them(name):
    literal = LITERALS[name]
    assert looks_like_a_secret(literal)
    with pytest.raises(ConfigError, match="looks like a secret itself") as refusal:
        SecretReference.parse(literal)
    message = str(refusal.value)
    assert "env:OPENAI_API_KEY" in message
    assert literal.strip() not in message
    assert refusal.value.__cause__ is None
    assert refusal.value.__context__ is None


@pytest.mark.parametrize("scheme", ["env:", "databricks:", "databricks:scope/", "file:"])
@pytest.mark.parametrize("name", ["openai", "databricks", "google", "github", "hex", "base64"])
def test_literal_keys_behind_a_scheme_are_refused(scheme, name):
    literal = LITERALS[name]
    with pytest.raises(ConfigError) as refusal:
        SecretReference.parse(scheme + literal)
    assert literal not in str(refusal.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "OPENAI_API_KEY",
        "env:",
        "env:1ABC",
        "env:A B",
        "env:A\nB",
        "ENV:A",
        "file:relative/path",
        "file:",
        "file:/a\0b",
        "databricks:scope",
        "databricks:/key",
        "databricks:scope/",
        "databricks:scope/a/b",
        "secret://scope/key",
        "https://example.org/key",
        "password1",
    ],
)
def test_other_text_is_refused_and_the_forms_are_named(text):
    with pytest.raises(ConfigError, match=r"env:|file:/|databricks:"):
        SecretReference.parse(text)


def test_a_value_that_is_no_text_is_refused():
    with pytest.raises(ConfigError, match="must be text, not bytes"):
        SecretReference.parse(b"env:A")


def test_the_constructor_checks_like_parse():
    with pytest.raises(ConfigError):
        SecretReference("env", "not a name")
    with pytest.raises(ConfigError):
        SecretReference("vault", "a/b")


@pytest.mark.parametrize(
    "text",
    [
        "OPENAI_API_KEY",
        "MY_TEAM_OPENAI_API_KEY_FOR_PRODUCTION_EU_WEST_1",
        "databricks-meta-llama-3-3-70b-instruct",
        "skeleton-key",
        "basically",
        "https://example.org/v1/serving-endpoints/embeddings2",
        "a sentence that is long enough, with 2 numbers and 3 more",
        "deadbeefdeadbeefdeadbeefdeadbeefdead",
        "",
    ],
)
def test_names_and_words_are_not_taken_for_secrets(text):
    assert not looks_like_a_secret(text)


@given(
    st.sampled_from(["", "env:", "file:", "databricks:", "Bearer "]),
    st.text(string.printable + "\0é\ud83d", max_size=80),
)
@settings(max_examples=60)
def test_no_refusal_repeats_its_text(scheme, tail):
    text = scheme + "Hx7" + tail
    try:
        reference = SecretReference.parse(text)
    except ConfigError as refusal:
        assert "Hx7" not in str(refusal)
    else:
        assert str(reference) == text.strip()


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.integers(40, 90))
def test_long_random_text_is_nearly_always_recognised(seed, length):
    draw = random.Random(seed)
    hits = sum(looks_like_a_secret("".join(draw.choices(BASE62, k=length))) for _ in range(20))
    assert hits >= 17

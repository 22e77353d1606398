"""Our wire formats against llama.cpp's server with the embedded models: what each parameter does there."""

import json

import pytest

from batch_infer.adapters.local.server import LocalServers
from tests.support.servers_of_others import run

pytestmark = pytest.mark.local_model

QUESTION = [{"role": "system", "content": "You are brief."}, {"role": "user", "content": "Name a colour."}]


@pytest.fixture(scope="module")
def servers():
    servers = LocalServers()
    yield servers
    servers.stop()


@pytest.fixture
def ask(process, servers):
    """One row; its outcome."""

    def ask(request, parameters=None, *, server="chat", **settings):
        parameters = {"temperature": 0, "max_tokens": 12, **(parameters or {})} if server == "chat" else parameters
        base_url = servers.url(server)
        (outcome,) = run(process, [request], parameters=parameters, base_url=base_url, timeout_s=120, **settings)
        return outcome

    return ask


@pytest.fixture(params=["openai", "anthropic"])
def provider(request):
    return request.param


def test_chat(ask, provider):
    outcome = ask(QUESTION, provider=provider)
    assert outcome.failure is None
    assert outcome.reply.text
    assert outcome.reply.finish_reason in ("stop", "length")
    assert 1 <= outcome.usage.completion_tokens <= 12
    assert outcome.usage.total_tokens == outcome.usage.prompt_tokens + outcome.usage.completion_tokens


def test_both_protocols_give_the_same_answer(ask):
    as_openai, as_anthropic = (ask(QUESTION, {"seed": 1}, provider=name) for name in ("openai", "anthropic"))
    assert as_openai.reply.text == as_anthropic.reply.text
    assert as_openai.reply.finish_reason == as_anthropic.reply.finish_reason
    assert as_openai.usage.prompt_tokens == as_anthropic.usage.prompt_tokens


def test_a_limit_is_kept_and_said(ask, provider):
    outcome = ask("Count to one hundred: one, two, three,", {"max_tokens": 3}, provider=provider)
    assert outcome.reply.finish_reason == "length"
    assert outcome.usage.completion_tokens == 3


def test_a_stop_text_is_left_out(ask, provider):
    whole = ask(QUESTION, provider=provider).reply.text
    word = max(whole.split(), key=len)
    outcome = ask(QUESTION, {"stop": [word]}, provider=provider)
    text = outcome.reply.text if outcome.reply is not None else ""
    assert word not in text
    assert whole.startswith(text)


def test_completions(ask):
    outcome = ask("Once upon a time", {"max_tokens": 8, "seed": 3}, task="completions")
    assert outcome.reply.text
    assert outcome.reply.message is None
    assert outcome.usage.completion_tokens <= 8


def test_a_seed_makes_a_warm_answer_repeatable(ask):
    given = {"temperature": 1.5, "max_tokens": 16}
    first, second = (ask("Write a line.", {**given, "seed": 7}).reply.text for _ in range(2))
    assert first == second
    assert len({ask("Write a line.", {**given, "seed": seed}).reply.text for seed in (7, 8, 9)}) > 1


def test_several_choices(ask):
    outcome = ask("Write a word.", {"n": 2, "temperature": 1.5, "seed": 7})
    assert len(outcome.reply.choices) == 2
    assert outcome.reply.choices[0] == outcome.reply.text


def test_a_json_schema_is_kept_to(ask):
    schema = {"type": "object", "properties": {"mood": {"enum": ["good", "bad"]}}, "required": ["mood"]}
    form = {"type": "json_schema", "json_schema": {"name": "mood", "schema": schema, "strict": True}}
    outcome = ask("Is a sunny day good or bad?", {"max_tokens": 40}, response_format=form)
    assert json.loads(outcome.reply.text)["mood"] in ("good", "bad")


def test_a_prompt_that_does_not_fit_is_that_rows_error(ask, provider):
    outcome = ask("word " * 9000, provider=provider)
    assert outcome.failure.kind == "context_length"
    assert outcome.attempts == 1


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_embeddings(ask, encoding):
    outcome = ask("a cat", {"encoding_format": encoding}, server="embed", task="embeddings")
    assert len(outcome.reply.embedding) == 384
    assert sum(value * value for value in outcome.reply.embedding) == pytest.approx(1, abs=1e-4)

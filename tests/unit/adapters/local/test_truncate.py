"""Fitting texts into 512 tokens: which are tokenized, and what becomes of them."""

import asyncio

import pytest

from batch_infer.adapters.local.truncate import fit, server_tokenizer
from batch_infer.adapters.transport import HttpReply
from batch_infer.contract.errors import Transient

FIRST, LAST = 101, 102


class Tokenizer:
    """A token a word."""

    def __init__(self):
        self.asked = []

    async def __call__(self, text):
        self.asked.append(text)
        return [FIRST, *range(1000, 1000 + len(text.split())), LAST]


def fitted(texts, tokenizer, **changes):
    return asyncio.run(fit(texts, tokenizer, **changes))


@pytest.mark.parametrize("text", ["", "short", "x" * 510, "é" * 255, "한" * 170])
def test_a_text_that_surely_fits_is_not_tokenized(text):
    tokenizer = Tokenizer()
    assert fitted([text], tokenizer) == [text]
    assert tokenizer.asked == []


@pytest.mark.parametrize("text", ["x" * 511, "é" * 256, "한" * 171])
def test_one_character_more_and_it_is_asked_for(text):
    tokenizer = Tokenizer()
    assert fitted([text], tokenizer) == [text]
    assert tokenizer.asked == [text]


def test_a_text_of_exactly_the_limit_stays_a_text():
    text = "word " * 510
    assert fitted([text], Tokenizer()) == [text]


def test_a_longer_text_becomes_its_first_tokens_between_the_special_ones():
    (ids,) = fitted(["word " * 511], Tokenizer())
    assert ids == [FIRST, *range(1000, 1510), LAST]
    assert len(ids) == 512


def test_order_is_kept_among_texts_and_ids():
    long = "word " * 600
    result = fitted(["a", long, "b"], Tokenizer())
    assert [type(item) for item in result] == [str, list, str]
    assert (result[0], result[2]) == ("a", "b")


def test_the_limit_can_be_smaller():
    assert fitted(["a b c d"], Tokenizer(), max_tokens=4) == [[FIRST, 1000, 1001, LAST]]


class FakeTransport:
    def __init__(self, status, body):
        self.reply = HttpReply(status, {}, body)
        self.sent = []

    async def post(self, url, headers, body, *, timeout_s):
        self.sent.append((url, body))
        return self.reply

    async def close(self):
        pass


def test_the_server_is_asked_outside_its_openai_path():
    transport = FakeTransport(200, b'{"tokens":[101,7592,102]}')
    assert asyncio.run(server_tokenizer("http://127.0.0.1:40001/v1", transport)("hello")) == [101, 7592, 102]
    assert transport.sent == [("http://127.0.0.1:40001/tokenize", b'{"content":"hello","add_special":true}')]


def test_a_server_that_does_not_tokenize_is_a_passing_fault():
    transport = FakeTransport(503, b'{"error":{"message":"Loading model"}}')
    with pytest.raises(Transient, match="status 503"):
        asyncio.run(server_tokenizer("http://127.0.0.1:40001/v1", transport)("hello"))

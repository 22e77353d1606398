"""Token estimates: never less than one, and close enough to reserve by."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_infer.engine.token_estimates import TOKENS_PER_IMAGE, TOKENS_PER_MESSAGE, estimate_prompt_tokens

text = st.text(st.characters(exclude_categories=["Cs"]))


@given(text, st.integers(0, 5))
def test_an_estimate_is_at_least_one_and_grows_with_files(prompt, files):
    estimate = estimate_prompt_tokens(prompt, files)
    assert estimate >= 1
    assert estimate == estimate_prompt_tokens(prompt) + files * TOKENS_PER_IMAGE


@given(text, text)
def test_more_text_never_has_fewer_tokens(a, b):
    assert estimate_prompt_tokens(a + b) >= estimate_prompt_tokens(a) - 1


@pytest.mark.parametrize(
    ("prompt", "low", "high"),
    [
        ("word " * 400, 400, 600),
        ("这是一个测试。" * 50, 300, 400),
        ("Grüße aus Köln. " * 50, 150, 300),
        ("שלום עולם " * 50, 150, 500),
    ],
)
def test_the_estimate_is_about_right(prompt, low, high):
    assert low <= estimate_prompt_tokens(prompt) <= high


def test_messages_as_bytes_count_too():
    assert estimate_prompt_tokens(b"") == TOKENS_PER_MESSAGE
    assert estimate_prompt_tokens(b"x" * 400) == 100 + TOKENS_PER_MESSAGE
    assert estimate_prompt_tokens("é".encode() * 150) == 100 + TOKENS_PER_MESSAGE

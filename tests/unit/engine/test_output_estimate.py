"""The learned size of replies."""

import random

from hypothesis import given
from hypothesis import strategies as st

from batch_infer.engine.token_estimates import KNOWN_AFTER, OutputEstimate


def test_the_most_is_reserved_until_enough_replies_are_known():
    estimate = OutputEstimate(512)
    for _ in range(KNOWN_AFTER - 1):
        estimate.learn(20)
        assert estimate.tokens == 512
    estimate.learn(20)
    assert estimate.tokens == 20


def test_it_covers_nearly_all_replies_without_reserving_the_most():
    lengths = random.Random(3)
    estimate = OutputEstimate(4096)
    covered = 0
    for count in range(2000):
        length = lengths.gauss(200, 50)
        covered += count >= 100 and length <= estimate.tokens
        estimate.learn(length)
    assert covered / 1900 > 0.93
    assert 250 < estimate.tokens < 400


def test_it_follows_replies_that_grow_longer():
    estimate = OutputEstimate(4096)
    for _ in range(100):
        estimate.learn(20)
    for _ in range(100):
        estimate.learn(800)
    assert estimate.tokens > 750


@given(st.floats(0, 1e6), st.lists(st.floats(0, 1e6), max_size=50))
def test_it_never_exceeds_the_most(most, lengths):
    estimate = OutputEstimate(most)
    for length in lengths:
        estimate.learn(length)
        assert 0 <= estimate.tokens <= most

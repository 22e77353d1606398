"""Owns token estimates made before a request is sent. Does not count what was billed: replies say that.

Source: OpenAI's rule of thumb, about 4 characters of English a token; scripts without spaces take about one token a
character, so characters beyond U+02FF count as one token each.
"""

from __future__ import annotations

CHARS_PER_TOKEN = 4
TOKENS_PER_MESSAGE = 4
TOKENS_PER_IMAGE = 1600
"""The largest that a provider scales an image to (Databricks: about 1,600 tokens)."""
DEFAULT_COMPLETION_TOKENS = 512
"""Reserved for a reply when no `max_tokens` bounds it."""


def estimate_prompt_tokens(content: str | bytes, files: int = 0) -> int:
    """A quick estimate, at least 1; never used for billing."""
    if content.isascii():
        text = len(content) // CHARS_PER_TOKEN
    elif isinstance(content, bytes):
        text = len(content) // 3
    else:
        utf8 = len(content.encode())
        wide = (utf8 - len(content)) // 2  # 2 further bytes mark a character of most non-Latin scripts
        text = max(0, len(content) - wide) // CHARS_PER_TOKEN + wide
    return text + TOKENS_PER_MESSAGE + files * TOKENS_PER_IMAGE

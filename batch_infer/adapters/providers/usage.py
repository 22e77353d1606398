"""Owns the `usage` object of OpenAI-compatible replies. Pure. On workers."""

from __future__ import annotations

import msgspec

from batch_infer.adapters.providers.reading import count
from batch_infer.contract.reply import Usage


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _CompletionDetails(msgspec.Struct):
    reasoning_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None
    prompt_cache_hit_tokens: int | None = None
    """DeepSeek's name for the cached part."""


_usage = msgspec.json.Decoder(_Usage)


def read_usage(raw: msgspec.Raw) -> Usage:
    """What the endpoint says it billed; unknown rather than wrong where that is missing, malformed or negative."""
    try:
        usage = _usage.decode(raw)
    except msgspec.DecodeError:
        return Usage()
    prompt, completion, total = count(usage.prompt_tokens), count(usage.completion_tokens), count(usage.total_tokens)
    if total is None and prompt is not None:
        total = prompt + (completion or 0)
    in_prompt, in_completion = usage.prompt_tokens_details, usage.completion_tokens_details
    cached = count(in_prompt.cached_tokens) if in_prompt is not None else count(usage.prompt_cache_hit_tokens)
    reasoning = count(in_completion.reasoning_tokens) if in_completion is not None else None
    return Usage(prompt, completion, total, cached, reasoning)

"""Owns fitting texts into the embedding model's context. Does not send the texts themselves.

llama.cpp answers an input of more tokens than its batch with status 500, and has no option to truncate. It does take
token ids instead of a text, and mixed with texts in one request, so a text that is too long is sent as the ids of its
beginning.

On workers.
"""

from __future__ import annotations

import asyncio
import unicodedata
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from batch_infer.adapters.local.models import LOCAL_MODELS
from batch_infer.adapters.transport import Transport
from batch_infer.contract.errors import Transient

MAX_TOKENS = LOCAL_MODELS["embed"].context_tokens
"""The most tokens of one input, `[CLS]` and `[SEP]` included."""

TOKENIZE_TIMEOUT_S = 60.0
"""Seconds for one text to be tokenized. It takes 1-2 ms, and waits behind what the server is computing."""

_SPECIAL_TOKENS = 2

Tokenize = Callable[[str], Awaitable[list[int]]]
"""Gives the token ids of a text, `[CLS]` and `[SEP]` included."""


async def fit(texts: Sequence[str], tokenize: Tokenize, max_tokens: int = MAX_TOKENS) -> list[str | list[int]]:
    """The inputs of an embeddings request for `texts`, each of at most `max_tokens` tokens.

    Contract: one input a text, in order. A text that fits is returned as it is; of a longer one the token ids of its
    beginning, between `[CLS]` and `[SEP]`. Only a text that might be too long is tokenized: every WordPiece token
    covers at least one character of the decomposed text, so one of at most `max_tokens - 2` of those fits.

    Args:
        texts: The texts to embed.
        tokenize: Asks the server that will embed them.
        max_tokens: The most tokens of one input, the two special ones included.
    """
    return list(await asyncio.gather(*(_fit_one(text, tokenize, max_tokens) for text in texts)))


async def _fit_one(text: str, tokenize: Tokenize, max_tokens: int) -> str | list[int]:
    if len(text) <= max_tokens and len(unicodedata.normalize("NFD", text)) <= max_tokens - _SPECIAL_TOKENS:
        return text
    ids = await tokenize(text)
    return text if len(ids) <= max_tokens else [*ids[: max_tokens - 1], ids[-1]]


class _TokenizeRequest(msgspec.Struct):
    content: str
    add_special: bool = True


class _TokenizeReply(msgspec.Struct):
    tokens: list[int]


def server_tokenizer(base_url: str, transport: Transport, *, timeout_s: float = TOKENIZE_TIMEOUT_S) -> Tokenize:
    """A `Tokenize` that asks the embedded server.

    Args:
        base_url: What `LocalServers.url` returned.
        transport: The worker's transport.
        timeout_s: Seconds for one text.

    Raises:
        Transient: on calling it, when the server does not answer as it should; and what the transport raises.
    """
    url = f"{base_url.rstrip('/').removesuffix('/v1')}/tokenize"
    headers = {"content-type": "application/json"}

    async def tokenize(text: str) -> list[int]:
        reply = await transport.post(url, headers, msgspec.json.encode(_TokenizeRequest(text)), timeout_s=timeout_s)
        try:
            return msgspec.json.decode(reply.body, type=_TokenizeReply).tokens
        except msgspec.MsgspecError as error:
            raise Transient(
                f"The embedded server could not tokenize a text: it answered with status {reply.status}.",
                kind="tokenize",
                status=reply.status,
            ) from error

    return tokenize

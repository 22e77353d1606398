"""Owns one row's request and its identity, the `request_key`. Does not encode requests for the wire.

The key is the BLAKE2b-128 digest, in hex, of the following, each part preceded by its length in eight bytes,
big-endian:

1. the text `batch_infer/1`;
2. the call as canonical JSON (sorted keys, no spaces): endpoint identity (provider, base URL, model), task, model
   parameters, response format;
3. the row's content: `p` + the prompt as UTF-8, or `m` + its messages (or a custom model's inputs) as canonical JSON;
4. for each file: `f` + the file's own BLAKE2b-128 digest;
5. `s` + the sample number in decimal.

Credentials, headers, limits, timeouts and the endpoint's local name are not part of it: they do not decide the reply.

On driver and workers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import msgspec

KEY_BYTES = 16
"""128 bits: among 100 million rows the chance of one collision is about 1e-23."""

_canonical = msgspec.json.Encoder(order="deterministic")


@dataclass(slots=True, eq=False)
class Request:
    """What one row asks."""

    key: str
    content: str | bytes | list[int]
    """The prompt, a text's token ids, or JSON, sent as it is written: a chat's messages, a custom model's inputs."""
    files: tuple[bytes, ...] = ()
    turns: tuple[tuple[str, str], ...] = ()
    """How the conversation went on after `content`: what the model said, and what it was told. Not part of the key."""
    problem: str = ""
    """What is wrong with the row's request; it is not sent, and this is its error."""
    prompt_tokens: int = 0
    """An estimate, made before sending (`engine.token_estimates`)."""
    origin: int = -1
    """The row that asks, where a job numbers its rows: of equal requests, the row that is billed."""

    @property
    def size_bytes(self) -> int:
        """What it holds in memory, roughly."""
        return len(self.content) + sum(map(len, self.files))


class CallIdentity:
    """The part of the key that all rows of one `ai_query` share.

    Args:
        endpoint: `Endpoint.identity`.
        task: The endpoint's; it also decides what a row's text may be.
        parameters: `modelParameters` as plain JSON values.
        response_format: The wire's `response_format` object, or `None`.
    """

    def __init__(
        self,
        *,
        endpoint: Sequence[str],
        task: str,
        parameters: Mapping[str, Any],
        response_format: Mapping[str, Any] | None,
    ) -> None:
        self.task = task
        self._shared = blake2b(digest_size=KEY_BYTES)
        for part in (
            b"batch_infer/1",
            _canonical.encode([list(endpoint), task, dict(parameters), response_format]),
        ):
            self._shared.update(len(part).to_bytes(8, "big") + part)

    def key(self, content: str | bytes, files: Sequence[bytes] = (), sample: int = 0) -> str:
        """The row's `request_key`: 32 hexadecimal digits."""
        digest = self._shared.copy()
        body = b"p" + content.encode() if isinstance(content, str) else b"m" + content
        digest.update(len(body).to_bytes(8, "big") + body)
        for file in files:
            part = b"f" + blake2b(file, digest_size=KEY_BYTES).digest()
            digest.update(len(part).to_bytes(8, "big") + part)
        part = b"s%d" % sample
        digest.update(len(part).to_bytes(8, "big") + part)
        return digest.hexdigest()

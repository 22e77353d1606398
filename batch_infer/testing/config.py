"""Owns what a fault endpoint can be told to do: `Rule` and `EndpointConfig`. Does not decide or send anything."""

from __future__ import annotations

import re
from typing import Any, Literal

import msgspec

WIRE_FAULTS = frozenset(
    {
        "reset_before_reply",
        "close_before_reply",
        "reset_mid_body",
        "close_mid_body",
        "stall",
        "stall_mid_body",
        "slowloris",
        "gzip_bomb",
        "huge_body",
        "huge_chunked",
    }
)
"""Faults of the connection. `reset_*` sends a TCP reset, `close_*` an orderly close, `stall*` nothing at all."""

BODY_FAULTS = frozenset(
    {
        "truncated_json",
        "html_200",
        "empty_body",
        "invalid_utf8",
        "lone_surrogate",
        "empty_choices",
        "null_content",
        "missing_usage",
        "nan_usage",
        "negative_usage",
        "error_in_200",
        "content_filter",
        "length",
        "redirect",
        "wrong_content_type",
        "gzip",
        "short_batch",
        "out_of_order",
        "duplicate_index",
        "missing_index",
        "wrong_dimension",
        "base64",
    }
)
"""Faults of the reply itself, sent over a healthy connection. `gzip` is none: a correct reply, compressed."""

DEFAULT_MAX_TOKENS = 256
"""Completion tokens that `tokens_per_minute` reserves for a request that names no maximum."""


class Rule(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """One scripted behaviour. The first rule that applies to a request decides it; without one it is answered.

    Every condition that is set must hold. For a packed embeddings request `match`, `regex` and `fraction` hold when
    they hold for any of its inputs.
    """

    match: str | None = None
    """A substring of the prompt: the last user message's text, or an input of an embeddings request."""
    regex: str | None = None
    """A regular expression searched for in the prompt."""
    nth: int | None = None
    """Only the n-th request, counted from 1 over all that passed authentication and the limits."""
    every: int | None = None
    """Only every n-th of these requests."""
    fraction: float | None = None
    """Only this share of the prompts, chosen by a hash of the text, so that a prompt is always in or always out."""
    times: int | None = None
    """Fires at most this often."""
    per_prompt_times: int | None = None
    """Fires at most this often for each distinct prompt, so that a retry of the same row gets through."""

    status: int = 200
    error: dict[str, Any] | None = None
    """The `error` object of the body; for a `status` of 400 and above there is a default."""
    headers: dict[str, str] = {}
    body: str | None = None
    """The whole body, as it is sent."""
    text: str | None = None
    """The text of the reply, instead of the echo."""
    latency_s: float | None = None
    """Instead of the endpoint's own latency."""
    hold: bool = False
    """Answer only once `release()` is called."""
    fault: str | None = None
    """A member of `WIRE_FAULTS` or `BODY_FAULTS`."""
    interval_s: float = 0.1
    """Seconds between the bytes of a `slowloris`."""
    size_bytes: int = 1 << 30
    """Size of a `gzip_bomb` (decompressed), `huge_body` or `huge_chunked`."""

    def __post_init__(self) -> None:
        if self.fault is not None and self.fault not in WIRE_FAULTS | BODY_FAULTS:
            known = ", ".join(sorted(WIRE_FAULTS | BODY_FAULTS))
            raise ValueError(f"There is no fault {self.fault!r}. Known: {known}.")
        if self.regex is not None:
            re.compile(self.regex)


class EndpointConfig(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Everything that a fault endpoint can be told. All limits hold for the endpoint as a whole."""

    latency_s: float = 0.0
    """Seconds from starting on a request to its reply."""
    latency_jitter_s: float = 0.0
    """Up to this many seconds more, drawn uniformly from a seeded generator."""
    rules: tuple[Rule, ...] = ()

    api_key: str | None = None
    """Requests without this key (`Authorization: Bearer`, `api-key` or `x-api-key`) get 401."""
    oauth_client: str | None = None
    """`id:secret` of the one client whose tokens pass, instead of `api_key`; `/oidc/v1/token` issues them."""
    oauth_lifetime_s: float = 3600.0
    """What a token's `expires_in` says."""
    oauth_token_uses: int | None = None
    """Requests that a token is good for; the next one gets 401."""
    unauthorized_after: int | None = None
    """From the n-th request on (counted from 1), every one gets 401."""

    requests_per_minute: float | None = None
    """A token bucket; what does not fit gets 429."""
    burst: int | None = None
    """The request bucket's size; `None` is one second's worth, at least 1."""
    tokens_per_minute: float | None = None
    """A bucket of tokens: prompt and maximum completion are reserved at admission, the unused part is credited."""
    burst_tokens: int | None = None
    """The token bucket's size; `None` is a whole minute's worth."""
    default_max_tokens: int = DEFAULT_MAX_TOKENS
    """Reserved for a request that names neither `max_tokens` nor `max_completion_tokens`."""
    retry_after: Literal["both", "seconds", "milliseconds", "none"] = "both"
    """Which of `retry-after` and `retry-after-ms` a 429 carries."""
    rate_headers: bool = False
    """Send `x-ratelimit-{limit,remaining,reset}-{requests,tokens}`."""
    slots: int | None = None
    """At most this many requests are served at once; the others queue."""
    queue_limit: int | None = None
    """Above this queue length the endpoint answers 503; `None` queues without bound."""

    models: tuple[str, ...] = ()
    """When given, any other model gets 404."""
    reply_words: int | None = None
    """Pad every chat reply to this many words."""
    dimensions: int = 16
    """Length of embeddings, unless the request names one."""
    max_inputs: int | None = None
    """A request with more embeddings inputs, or more records of a custom model, gets 400."""

    host: str = "127.0.0.1"
    idle_close_s: float | None = None
    """Close a connection that has been idle for this long."""
    tls_cert: str | None = None
    """A PEM file with the certificate chain; the endpoint then speaks https, its control channel still http."""
    tls_key: str | None = None
    keep_bodies: int = 100
    """How many of the latest request bodies are kept."""
    record: bool = True
    """Keep arrivals and counts by prompt; switch off for runs of millions of requests."""

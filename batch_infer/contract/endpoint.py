"""Owns the `Endpoint` record: its fields, their defaults, and what each may hold. Does not look endpoints up.

The same fields, under the same names, are arguments of `register_endpoint`, keys of a TOML table, and Spark settings
`spark.batch_infer.endpoint.<name>.<field>`; text from settings is converted here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

from batch_infer.contract.errors import ConfigError
from batch_infer.contract.limits import Limits
from batch_infer.contract.providers import PROVIDERS, check_provider, with_defaults
from batch_infer.contract.secret import SecretReference

Task = Literal["chat", "completions", "embeddings", "custom"]
TASKS: tuple[str, ...] = get_args(Task)
LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A model behind an address. Frozen and picklable; holds the *reference* to a secret, never the secret.

    All limits are for the whole cluster and all its tasks together.
    """

    name: str
    """What SQL calls it."""
    provider: str = "openai"
    """`openai`: any OpenAI-compatible server. Or `azure`, `databricks`, `anthropic`, `gemini`, `local`."""
    base_url: str = ""
    """Up to, and without, `/chat/completions`, `/embeddings` or `/v1/messages`; of `azure` and `databricks` the
    resource's or workspace's address. `anthropic` and `gemini` have a default. Empty for `local`."""
    model: str = ""
    """As the endpoint calls it; Azure's deployment. Of `databricks` the serving endpoint's name, or `endpoint/model`
    for one model of several behind it."""
    task: str = "chat"
    """`chat`, `completions`, `embeddings`, or `custom` (`databricks` only): inputs to predictions."""
    api_version: str | None = None
    """Azure's `api-version`; not needed where base_url ends in `/openai/v1`. Anthropic's `anthropic-version`; by
    default the newest that takes the call's parameters."""
    api_key: str | None = None
    """A reference: `env:NAME`, `file:/path`, `databricks:scope/key`, `databricks-sdk:PROFILE`. `None` sends none."""
    client_id: str | None = None
    """OAuth machine-to-machine on `databricks`, instead of api_key: a reference to the client's id."""
    client_secret: str | None = None
    """A reference to the OAuth client's secret."""
    requests_per_minute: float | None = None
    """Requests, not rows: a packed embeddings request counts once. `None`: no limit of ours."""
    tokens_per_minute: float | None = None
    """Prompt and completion tokens together. `None`: no limit of ours."""
    input_tokens_per_minute: float | None = None
    """Prompt tokens alone, where the endpoint limits them apart. `None`: no limit of ours."""
    output_tokens_per_minute: float | None = None
    """Completion tokens alone. `None`: no limit of ours."""
    max_concurrency: int | None = None
    """Requests in flight. `None`: as many as the endpoint is found to take."""
    timeout_s: float = 300.0
    """Seconds for one attempt, from connecting to the last byte of the reply."""
    connect_timeout_s: float = 10.0
    """Seconds to connect."""
    max_attempts: int = 5
    """Attempts a row may use up on passing faults (connect errors, 500, 502, 504)."""
    max_ambiguous_retries: int = 1
    """Times a request that may have been billed without a usable reply is sent again."""
    max_repairs: int = 2
    """Times a chat model is asked to mend a reply that is not of the form asked for. Each is an attempt, and billed."""
    throttle_deadline_s: float = 1800.0
    """Seconds that a row may wait through 429, 503 and 529 before it fails."""
    inputs_per_request: int = 64
    """Texts packed into one embeddings request, at most."""
    tokens_per_request: int = 100_000
    """Estimated tokens packed into one embeddings request, at most (OpenAI's cap is 300,000)."""
    usd_per_million_prompt_tokens: float | None = None
    """Price of prompt tokens. `None`: unknown, and `cost_usd` is NULL."""
    usd_per_million_completion_tokens: float | None = None
    """Price of completion tokens. `None`: unknown (embeddings have none and need none)."""
    usd_per_million_cached_tokens: float | None = None
    """Price of prompt tokens served from the endpoint's cache. `None`: as other prompt tokens."""
    transport: str | None = None
    """`pyreqwest`, `httpx`, or `module:factory` whose result is an `httpx.AsyncBaseTransport`. `None`: the fastest."""
    ca_file: str | None = None
    """PEM file of certificate authorities to trust beside the usual ones."""
    allow_http: bool = False
    """Permits plain http to hosts other than loopback."""

    @property
    def identity(self) -> tuple[str, str, str]:
        """What decides replies, as far as the endpoint goes; part of the `request_key`. Not its local name."""
        version = f"?api-version={self.api_version}" if self.api_version else ""
        return (self.provider, self.base_url.rstrip("/") + version, self.model)

    @property
    def secrets(self) -> tuple[SecretReference, ...]:
        """Every secret that a worker may need for it."""
        given = (self.api_key, self.client_id, self.client_secret)
        return tuple(SecretReference.parse(text) for text in given if text is not None)

    @property
    def limits(self) -> Limits:
        """What the user allows the whole cluster."""
        return Limits(
            requests_per_minute=self.requests_per_minute,
            tokens_per_minute=self.tokens_per_minute,
            input_tokens_per_minute=self.input_tokens_per_minute,
            output_tokens_per_minute=self.output_tokens_per_minute,
            max_concurrency=self.max_concurrency,
        )

    def cost_usd(self, prompt: int | None, completion: int | None, cached: int | None) -> float | None:
        """The price of that many tokens in US dollars, or `None` where a needed price or count is unknown."""
        if self.usd_per_million_prompt_tokens is None or prompt is None:
            return None
        cached = min(cached or 0, prompt)
        cached_price = self.usd_per_million_cached_tokens
        if cached_price is None:
            cached_price = self.usd_per_million_prompt_tokens
        total = (prompt - cached) * self.usd_per_million_prompt_tokens + cached * cached_price
        if completion:
            if self.usd_per_million_completion_tokens is None:
                return None
            total += completion * self.usd_per_million_completion_tokens
        return total / 1e6


def build_endpoint(name: str, given: Mapping[str, Any]) -> Endpoint:
    """Makes an `Endpoint` from named fields, whose values may be text.

    Raises:
        ConfigError: names the endpoint, the field, the value (never a secret's), and what is allowed.
    """
    if not name or name != name.strip():
        raise ConfigError(f"endpoint name {name!r}: it must not be empty or begin or end with a space.")
    values: dict[str, Any] = {"name": name}
    for field, value in given.items():
        check = _CHECKS.get(field)
        if check is None:
            near = get_close_matches(field, _CHECKS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ConfigError(
                f"endpoint {name!r}: there is no field {field!r}.{hint} The fields are: {', '.join(_CHECKS)}."
            )
        if value is None:
            continue
        try:
            values[field] = check(value)
        except ConfigError as error:
            raise ConfigError(f"endpoint {name!r}, field {field!r}: {error}") from None
        except (ValueError, TypeError) as error:
            raise ConfigError(f"endpoint {name!r}, field {field!r}: {value!r} is not allowed: {error}") from None
    endpoint = Endpoint(**with_defaults(values))
    _check_together(endpoint)
    return endpoint


def _check_together(endpoint: Endpoint) -> None:
    where = f"endpoint {endpoint.name!r}"
    check_provider(endpoint)
    if not endpoint.model:
        raise ConfigError(f"{where}: the field 'model' is missing. Give the model's name as the endpoint calls it.")
    if endpoint.base_url:
        url = urlsplit(endpoint.base_url)
        if url.scheme == "http" and url.hostname not in LOOPBACK and not endpoint.allow_http:
            raise ConfigError(
                f"{where}, field 'base_url': plain http to {url.hostname!r} would send prompts and keys unencrypted. "
                "Use https, or set allow_http if the network is yours."
            )


def _one_of(*allowed: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if value not in allowed:
            near = get_close_matches(str(value), allowed, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"{value!r} is not allowed; it is one of {', '.join(map(repr, allowed))}.{hint}")
        return str(value)

    return check


def _number(*, low: float, whole: bool = False, low_allowed: bool = False) -> Callable[[Any], Any]:
    kind = "a whole number" if whole else "a number"
    bound = f"of at least {low:g}" if low_allowed else f"above {low:g}"

    def check(value: Any) -> float | int:
        try:
            number = float(value)
            good = (
                not isinstance(value, bool)
                and math.isfinite(number)
                and (number >= low if low_allowed else number > low)
            )
        except (TypeError, ValueError):
            good = False
        if not good or (whole and number != int(number)):
            raise ConfigError(f"{value!r} is not allowed; it is {kind} {bound}.")
        return int(number) if whole else number

    return check


def _url(value: Any) -> str:
    text = str(value)
    if "@" in text.split("://", 1)[-1].split("/", 1)[0]:
        raise ConfigError("credentials inside a URL end up in logs; put a reference into 'api_key' instead.")
    try:
        url = urlsplit(text)
        good = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        good = False
    if not good or text != text.strip():
        raise ConfigError(f"{value!r} is not allowed; it is an http or https URL, such as 'https://api.openai.com/v1'.")
    if url.query or url.fragment:
        raise ConfigError(f"{str(value)!r} is not allowed; it is a URL without '?' and '#'.")
    return text.rstrip("/")


def _boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if str(value).lower() in ("true", "false"):
        return str(value).lower() == "true"
    raise ConfigError(f"{value!r} is not allowed; it is true or false.")


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{value!r} is not allowed; it is text, and not empty.")
    return value


def _secret(value: Any) -> str:
    return str(SecretReference.parse(value if isinstance(value, str) else ""))


def _api_version(value: Any) -> str:
    text = _text(str(value))
    if not all(character.isalnum() or character in "-._" for character in text):
        raise ConfigError(f"{value!r} is not allowed; it is a version such as '2024-10-21'.")
    return text


def _transport(value: Any) -> str:
    text = _text(value)
    if text in ("pyreqwest", "httpx") or (":" in text and all(text.split(":", 1))):
        return text
    raise ConfigError(f"{value!r} is not allowed; it is 'pyreqwest', 'httpx', or 'package.module:factory'.")


_positive = _number(low=0)
_price = _number(low=0, low_allowed=True)
_count = _number(low=1, whole=True, low_allowed=True)

_CHECKS: dict[str, Callable[[Any], Any]] = {
    "provider": _one_of(*PROVIDERS),
    "base_url": _url,
    "model": _text,
    "task": _one_of(*TASKS),
    "api_version": _api_version,
    "api_key": _secret,
    "client_id": _secret,
    "client_secret": _secret,
    "requests_per_minute": _positive,
    "tokens_per_minute": _positive,
    "input_tokens_per_minute": _positive,
    "output_tokens_per_minute": _positive,
    "max_concurrency": _count,
    "timeout_s": _positive,
    "connect_timeout_s": _positive,
    "max_attempts": _count,
    "max_ambiguous_retries": _number(low=0, whole=True, low_allowed=True),
    "max_repairs": _number(low=0, whole=True, low_allowed=True),
    "throttle_deadline_s": _price,
    "inputs_per_request": _count,
    "tokens_per_request": _count,
    "usd_per_million_prompt_tokens": _price,
    "usd_per_million_completion_tokens": _price,
    "usd_per_million_cached_tokens": _price,
    "transport": _transport,
    "ca_file": _text,
    "allow_http": _boolean,
}
assert set(_CHECKS) | {"name"} == {field.name for field in fields(Endpoint)}

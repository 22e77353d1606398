"""Owns the `Endpoint` record: its fields, their defaults, and what each may hold. On driver and workers.

The same fields, under the same names, are arguments of `register_endpoint`, keys of a TOML table, and Spark settings
`spark.batch_infer.endpoint.<name>.<field>`; text from settings is converted here. Does not look endpoints up, and knows
no provider: `adapters.providers` does.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args
from urllib.parse import parse_qsl, urlsplit

import msgspec

from batch_infer.contract.errors import ConfigError
from batch_infer.contract.field_texts import with_field_texts
from batch_infer.contract.limits import Limits
from batch_infer.contract.misspelt import did_you_mean
from batch_infer.contract.say_once import SayOnce
from batch_infer.contract.secret import SecretReference, is_reference, looks_like_a_secret

Task = Literal["chat", "completions", "embeddings", "custom"]
TASKS: tuple[str, ...] = get_args(Task)
LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""Hosts to which plain http leaves no machine."""
PATHS_CUT = ("/chat/completions", "/completions", "/embeddings", "/v1/messages", "/responses")
"""Ends of an address that name a task's path, which is added to `base_url` again when a request is sent."""

Pairs = tuple[tuple[str, str], ...]
"""Names and values, each value literal or a reference to a secret."""

_said = SayOnce(logging.getLogger("batch_infer"))


@with_field_texts
@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A model behind an address. Frozen and picklable; holds the *reference* to a secret, never the secret.

    All limits are for the whole cluster and all its tasks together.
    """

    name: str
    """What SQL calls it."""
    provider: str = "openai"
    """`openai`: any OpenAI-compatible server. Others, such as `anthropic` or `groq`: see the table of providers."""
    base_url: str = ""
    """Address up to, and without, `/chat/completions`, `/embeddings` or `/v1/messages`; of `azure` and `databricks` the
    resource's or workspace's. Providers with one address for everybody have it as default."""
    model: str = ""
    """As the endpoint calls it; Azure's deployment. Of `databricks` the serving endpoint's name, or `endpoint/model`
    for one model of several behind it."""
    task: str = "chat"
    """`chat`, `completions`, `embeddings`, or `custom` (`databricks` only): inputs to predictions. Where none is given,
    models whose name looks like an embeddings model's (`embed`, `bge-`, `gte-`, `e5-`) get `embeddings`."""
    api_version: str | None = None
    """Azure's `api-version`; not needed where base_url ends in `/openai/v1`. Anthropic's `anthropic-version`; by
    default the newest that takes the call's parameters."""
    api_key: str | None = None
    """A reference: `env:NAME`, `file:/path`, `databricks:scope/key`, `databricks-sdk:PROFILE`, `google:default`,
    `aws:PROFILE`. `None` sends none."""
    headers: Pairs = ()
    """Further request headers, by name; a value may be a reference, and must be one where it is a secret."""
    query: Pairs = ()
    """Parameters added to the address after `?`, by name; values as in `headers`. Literal ones are part of a request's
    identity."""
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
    """`pyreqwest`, `httpx`, or `module:factory`: a function that takes any of `connect_timeout_s`, `max_connections`,
    `ca_file`, `proxy`, and returns an `httpx.AsyncBaseTransport`, called once per worker process. `None`: the
    fastest."""
    ca_file: str | None = None
    """PEM file of certificate authorities to trust beside the usual ones."""
    allow_http: bool = False
    """Permits plain http to hosts other than loopback."""

    @property
    def identity(self) -> tuple[str, str, str]:
        """What decides replies, as far as the endpoint goes; part of the `request_key`. Not its local name."""
        query = [("api-version", self.api_version)] if self.api_version else []
        query += [pair for pair in self.query if not is_reference(pair[1])]
        version = "?" + "&".join(f"{name}={value}" for name, value in query) if query else ""
        return (self.provider, self.base_url.rstrip("/") + version, self.model)

    @property
    def secrets(self) -> tuple[SecretReference, ...]:
        """Every secret that a worker may need for it."""
        given = [text for text in (self.api_key, self.client_id, self.client_secret) if text is not None]
        given += [value for _, value in (*self.headers, *self.query) if is_reference(value)]
        return tuple(SecretReference.parse(text) for text in given)

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


def checked_fields(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an endpoint, whose values may be text, each checked by itself; those that are `None` are left out.

    Raises:
        ConfigError: names the endpoint, the field, the value (never a secret's), and what is allowed.
    """
    if not name or name != name.strip():
        raise ConfigError(f"endpoint name {name!r}: it must not be empty or begin or end with a space.")
    values: dict[str, Any] = {"name": name}
    for field, value in given.items():
        check = _CHECKS.get(field)
        if check is None:
            raise ConfigError(
                f"endpoint {name!r}: there is no field {field!r}.{did_you_mean(field, _CHECKS)} The fields are: "
                f"{', '.join(_CHECKS)}."
            )
        if value is None:
            continue
        try:
            values[field] = check(value)
        except ConfigError as error:
            raise ConfigError(f"endpoint {name!r}, field {field!r}: {error}") from None
        except (ValueError, TypeError) as error:
            raise ConfigError(f"endpoint {name!r}, field {field!r}: {value!r} is not allowed: {error}") from None
    return values


def check_address(endpoint: Endpoint) -> None:
    """Refuses an endpoint without a model, and plain http to other machines.

    Raises:
        ConfigError: names the endpoint and the field.
    """
    where = f"endpoint {endpoint.name!r}"
    if not endpoint.model:
        raise ConfigError(f"{where}: the field 'model' is missing. Give the model's name as the endpoint calls it.")
    if endpoint.base_url:
        url = urlsplit(endpoint.base_url)
        if url.scheme == "http" and url.hostname not in LOOPBACK and not endpoint.allow_http:
            raise ConfigError(
                f"{where}, field 'base_url': plain http to {url.hostname!r} would send prompts and keys unencrypted. "
                "Use https, or set allow_http if the network is yours."
            )


def one_of(*allowed: str) -> Callable[[Any], str]:
    """A check that a value is one of these."""

    def check(value: Any) -> str:
        if value not in allowed:
            raise ConfigError(
                f"{value!r} is not allowed; it is one of {', '.join(map(repr, allowed))}.{did_you_mean(value, allowed)}"
            )
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
        raise ConfigError(
            f"{_without_values(text)!r} is not allowed; it is a URL without '?' and '#'. Put what follows '?' into the "
            "field 'query'."
        )
    return _without_path(text.rstrip("/"))


def _without_values(url: str) -> str:
    """A URL for a message: the values in its query may be secrets."""
    head, mark, query = url.partition("?")
    names = [f"{name}=…" if looks_like_a_secret(value) else f"{name}={value}" for name, value in parse_qsl(query)]
    return head + mark + ("&".join(names) or query)


def _without_path(url: str) -> str:
    """The address without a task's path at its end, which people copy from a provider's examples; says so once."""
    for path in PATHS_CUT:
        if url.endswith(path):
            cut = url.removesuffix(path)
            _said.warning(
                url, "base_url %r ends in %r, which is added when a request is sent; using %r.", url, path, cut
            )
            return cut
    return url


def _pairs(value: Any) -> Pairs:
    """Names and values from a mapping, from pairs, or from a JSON object as text."""
    if isinstance(value, str):
        try:
            value = msgspec.json.decode(value)
        except msgspec.DecodeError:
            raise ConfigError("it is a mapping of names to values, or a JSON object as text.") from None
    items = value.items() if isinstance(value, Mapping) else value
    try:
        pairs = tuple((name, text) for name, text in items)
    except (TypeError, ValueError):
        raise ConfigError("it is a mapping of names to values, or a JSON object as text.") from None
    for name, text in pairs:
        if not isinstance(name, str) or not name or not all(c.isalnum() or c in "-_.[]$" for c in name):
            raise ConfigError(f"{name!r} is no name: letters, digits, '-', '_' and '.'.")
        if not isinstance(text, str):
            raise ConfigError(f"the value of {name!r} is text; got {type(text).__name__}.")
        if is_reference(text):
            SecretReference.parse(text)
        elif looks_like_a_secret(text):
            raise ConfigError(
                f"the value of {name!r} looks like a secret (its text is not shown). Write a reference to it instead, "
                "such as 'env:GATEWAY_KEY'."
            )
        elif not (text.isascii() and text.isprintable()):
            raise ConfigError(f"the value of {name!r} holds a character that no header or address may carry.")
    return pairs


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
    "provider": _text,
    "base_url": _url,
    "model": _text,
    "task": one_of(*TASKS),
    "api_version": _api_version,
    "api_key": _secret,
    "headers": _pairs,
    "query": _pairs,
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

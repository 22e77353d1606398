"""Owns where endpoints come from: registration in Python, Spark settings, a TOML file, `'provider/model'`.

Looked up in that order, on the driver, and built with what their provider's record adds. Does not check single fields:
`contract.endpoint` does.
"""

from __future__ import annotations

import os
import threading
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from batch_infer.adapters.providers import PROVIDERS, local
from batch_infer.contract.endpoint import Endpoint, Task, check_address, checked_fields, one_of
from batch_infer.contract.errors import ConfigError
from batch_infer.contract.misspelt import did_you_mean, names_near_misses

SETTING = "spark.batch_infer.endpoint."
"""Prefix of the Spark settings `spark.batch_infer.endpoint.<name>.<field>`."""
FILE_SETTING = "spark.batch_infer.endpoints_file"
"""Spark setting with the path of a TOML file of endpoints."""
FILE_VARIABLE = "BATCH_INFER_ENDPOINTS"
"""Environment variable with the path of a TOML file of endpoints, where no setting names one."""
NAMED_VALUES = ("headers", "query")
"""Fields that hold names and values of their own: `…endpoint.<name>.headers.<header>`."""

_registered: dict[str, Mapping[str, Any]] = {}
_lock = threading.Lock()


@names_near_misses
def register_endpoint(
    name: str,
    *,
    provider: str | None = None,
    base_url: str | None = None,
    model: str | None = None,
    task: Task | None = None,
    api_version: str | None = None,
    api_key: str | None = None,
    headers: Mapping[str, str] | None = None,
    query: Mapping[str, str] | None = None,
    client_id: str | None = None,
    client_secret: str | None = None,
    requests_per_minute: float | None = None,
    tokens_per_minute: float | None = None,
    input_tokens_per_minute: float | None = None,
    output_tokens_per_minute: float | None = None,
    max_concurrency: int | None = None,
    timeout_s: float | None = None,
    connect_timeout_s: float | None = None,
    max_attempts: int | None = None,
    max_ambiguous_retries: int | None = None,
    max_repairs: int | None = None,
    throttle_deadline_s: float | None = None,
    inputs_per_request: int | None = None,
    tokens_per_request: int | None = None,
    usd_per_million_prompt_tokens: float | None = None,
    usd_per_million_completion_tokens: float | None = None,
    usd_per_million_cached_tokens: float | None = None,
    transport: str | None = None,
    ca_file: str | None = None,
    allow_http: bool | None = None,
) -> Endpoint:
    """Registers an endpoint under a name, for this driver process; a second registration replaces the first.

    The arguments are the fields of `batch_infer.Endpoint`, whose `help()` describes each; `None` means the field's
    default. `api_key` and other secrets are references, such as `env:NAME`, never the secret.

    Returns:
        The endpoint as it will be used.

    Raises:
        ConfigError: names the field, the value, and what is allowed.
    """
    given = {field: value for field, value in locals().items() if field != "name" and value is not None}
    endpoint = build_endpoint(name, given)
    with _lock:
        _registered[name] = given
    return endpoint


def build_endpoint(name: str, given: Mapping[str, Any]) -> Endpoint:
    """Makes an `Endpoint` from named fields, whose values may be text, with its provider's defaults and checks.

    Raises:
        ConfigError: names the endpoint, the field, the value (never a secret's), and what is allowed.
    """
    values = checked_fields(name, given)
    try:
        provider = PROVIDERS[one_of(*PROVIDERS)(values.get("provider", "openai"))]
    except ConfigError as error:
        raise ConfigError(f"endpoint {name!r}, field 'provider': {error}") from None
    if not values.get("base_url") and provider.base_url:
        values["base_url"] = provider.base_url
    if "task" not in values:
        values["task"] = provider.task_of(values.get("model", ""))
    endpoint = Endpoint(**values)
    _check_provider(endpoint)
    check_address(endpoint)
    return endpoint


def _check_provider(endpoint: Endpoint) -> None:
    """Checks what an endpoint's provider needs and what it cannot do."""
    where = f"endpoint {endpoint.name!r}"
    provider = PROVIDERS[endpoint.provider]
    if provider.has_address and not endpoint.base_url:
        raise ConfigError(f"{where}: the field 'base_url' is missing. Give the address {provider.address}.")
    if endpoint.task not in provider.tasks:
        raise ConfigError(
            f"{where}, field 'task': provider {endpoint.provider!r} has no {endpoint.task!r}; its tasks are: "
            f"{', '.join(provider.tasks)}."
        )
    for other in PROVIDERS.values():
        for field in sorted(other.fields - provider.fields):
            if getattr(endpoint, field) is not None:
                raise ConfigError(
                    f"{where}, field {field!r}: provider {endpoint.provider!r} has no such thing; it is for "
                    f"{other.name!r}."
                )
    if provider.check is not None:
        provider.check(endpoint)


def unregistered(name: str) -> Mapping[str, Any] | None:
    """The fields of `'provider/model'`, or `None` where that is no provider's.

    Raises:
        ConfigError: a variable that the provider's address comes from is not set.
    """
    provider, slash, model = name.partition("/")
    if not slash or not model or provider not in PROVIDERS:
        return None
    return PROVIDERS[provider].unregistered(model)


def find_endpoint(name: str, settings: Mapping[str, str]) -> Endpoint:
    """The endpoint of that name. Where several sources name it, each field is taken from the first that has it.

    Args:
        name: A registered name, or `'provider/model'`.
        settings: Spark settings.

    Raises:
        ConfigError: there is none; names the nearest, all that exist, and the providers.
    """
    with _lock:
        known: dict[str, Mapping[str, Any]] = dict(_registered)
    for source in (_from_settings(settings), _from_file(settings)):
        for other, fields in source.items():
            known[other] = {**fields, **known.get(other, {})}
    found = known.get(name)
    if found is None:
        found = unregistered(name)
    if found is None:
        raise _unknown(name, sorted(known))
    return build_endpoint(name, found)


def _from_settings(settings: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for key, value in settings.items():
        if not key.startswith(SETTING):
            continue
        path = key.removeprefix(SETTING)
        name, field, inner = _named_value(path) or (*path.rpartition(".")[::2], "")
        if not name:
            raise ConfigError(f"setting {key!r}: expected '{SETTING}<name>.<field>'.")
        fields = found.setdefault(name, {})
        if inner:
            fields[field] = {**fields.get(field, {}), inner: value}
        else:
            fields[field] = value
    return found


def _named_value(path: str) -> tuple[str, str, str] | None:
    """`<name>.headers.<header>` in its three parts; `None` where it is none."""
    for field in NAMED_VALUES:
        name, mark, inner = path.partition(f".{field}.")
        if mark and name and inner:
            return name, field, inner
    return None


def _from_file(settings: Mapping[str, str]) -> dict[str, Mapping[str, Any]]:
    named = settings.get(FILE_SETTING) or os.environ.get(FILE_VARIABLE)
    if not named:
        return {}
    path = Path(named).expanduser()
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"endpoints file {str(path)!r} cannot be read: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"endpoints file {str(path)!r} is not TOML: {error}.") from None
    tables = content.get("endpoint", {})
    unknown = sorted(set(content) - {"endpoint"})
    if unknown or not isinstance(tables, dict) or not all(isinstance(table, dict) for table in tables.values()):
        what = f"unknown table {unknown[0]!r}" if unknown else "'endpoint' is not a table of tables"
        raise ConfigError(f"endpoints file {str(path)!r}: {what}. Write [endpoint.NAME] and its fields below.")
    return tables


def _unknown(name: str, known: list[str]) -> ConfigError:
    offered = [*known, *(f"local/{model}" for model in local.TASKS)]
    hint = did_you_mean(name, offered, cutoff=0.5)
    provider, slash, _ = name.partition("/")
    if slash and provider not in PROVIDERS:
        hint += f" {provider[:40]!r} is no provider.{did_you_mean(provider, PROVIDERS)}"
    models = ", ".join(f"'{other}/<model>'" for other in PROVIDERS if other != "local")
    return ConfigError(
        f"there is no endpoint {name!r}.{hint} Known are: {', '.join(offered)}, and without registration {models}. "
        "Register one with batch_infer.register_endpoint(...) or the settings "
        "spark.batch_infer.endpoint.<name>.<field>."
    )

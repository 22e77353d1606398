"""Owns where endpoints come from: registration in Python, Spark settings, a TOML file, `'provider/model'`.

Looked up in that order, on the driver. Does not check fields: `contract.endpoint` does.
"""

from __future__ import annotations

import os
import threading
import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from batch_infer.adapters.providers.from_environment import LOCAL_TASKS, PROVIDER_NAMES, unregistered
from batch_infer.contract.endpoint import Endpoint, build_endpoint
from batch_infer.contract.errors import ConfigError

SETTING = "spark.batch_infer.endpoint."
"""Prefix of the Spark settings `spark.batch_infer.endpoint.<name>.<field>`."""
FILE_SETTING = "spark.batch_infer.endpoints_file"
FILE_VARIABLE = "BATCH_INFER_ENDPOINTS"

_registered: dict[str, Mapping[str, Any]] = {}
_lock = threading.Lock()


def register_endpoint(name: str, **fields: Any) -> Endpoint:
    """Registers an endpoint under a name, for this driver process; a second registration replaces the first.

    Args:
        name: What `ai_query` calls it.
        **fields: The fields of `Endpoint`: provider, base_url, model, task, api_key (a reference such as `env:NAME`),
            requests_per_minute, tokens_per_minute, max_concurrency, timeout_s, prices, ….

    Raises:
        ConfigError: names the field, the value, and what is allowed.
    """
    endpoint = build_endpoint(name, fields)
    with _lock:
        _registered[name] = dict(fields)
    return endpoint


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


def _from_settings(settings: Mapping[str, str]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for key, value in settings.items():
        if key.startswith(SETTING):
            name, _, field = key.removeprefix(SETTING).rpartition(".")
            if not name:
                raise ConfigError(f"setting {key!r}: expected '{SETTING}<name>.<field>'.")
            found.setdefault(name, {})[field] = value
    return found


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
    offered = [*known, *(f"local/{model}" for model in LOCAL_TASKS)]
    near = get_close_matches(name, offered, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    provider, slash, _ = name.partition("/")
    if slash and provider not in PROVIDER_NAMES:
        close = get_close_matches(provider, PROVIDER_NAMES, n=1)
        nearest = f"; the nearest is {close[0]!r}" if close else ""
        hint += f" {provider[:40]!r} is no provider{nearest}."
    models = ", ".join(f"'{other}/<model>'" for other in PROVIDER_NAMES if other != "local")
    return ConfigError(
        f"there is no endpoint {name!r}.{hint} Known are: {', '.join(offered)}, and without registration {models}. "
        "Register one with batch_infer.register_endpoint(...) or the settings "
        "spark.batch_infer.endpoint.<name>.<field>."
    )

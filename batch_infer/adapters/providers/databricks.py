"""Owns Databricks' record: serving endpoints, custom models among them; tokens, OAuth, or databricks-sdk.

Source: "Query foundation models", "Authorize service principal access", Model Serving limits.

On driver and workers.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from typing import Any

from batch_infer.adapters.credentials.secrets import databricks_config
from batch_infer.adapters.providers.custom_wire import CustomWire
from batch_infer.adapters.providers.databricks_wire import DatabricksWire
from batch_infer.adapters.providers.record import Environment, Provider
from batch_infer.adapters.transport.status import ErrorRules, Verdict
from batch_infer.contract.endpoint import Endpoint
from batch_infer.contract.errors import ConfigError, Throttled

_EXAMPLE = "such as 'https://NAME.cloud.databricks.com'"


def _check(endpoint: Endpoint) -> None:
    where = f"endpoint {endpoint.name!r}"
    if (endpoint.client_id is None) != (endpoint.client_secret is None):
        missing = "client_id" if endpoint.client_id is None else "client_secret"
        raise ConfigError(f"{where}: the field {missing!r} is missing; OAuth needs both, client_id and client_secret.")
    if endpoint.client_id is not None and endpoint.api_key is not None:
        raise ConfigError(f"{where}: both api_key and client_id are given; an endpoint has one kind of credentials.")


def _from_environment(model: str) -> Mapping[str, Any]:
    host = os.environ.get("DATABRICKS_HOST") or getattr(databricks_config(), "host", None)
    if not host:
        raise ConfigError(f"endpoint 'databricks/{model}': set DATABRICKS_HOST to the workspace's address, {_EXAMPLE}.")
    fields: dict[str, Any] = {"base_url": host if "://" in host else f"https://{host}", "model": model}
    if os.environ.get("DATABRICKS_TOKEN"):
        fields["api_key"] = "env:DATABRICKS_TOKEN"
    elif os.environ.get("DATABRICKS_CLIENT_ID") and os.environ.get("DATABRICKS_CLIENT_SECRET"):
        fields["client_id"] = "env:DATABRICKS_CLIENT_ID"
        fields["client_secret"] = "env:DATABRICKS_CLIENT_SECRET"  # noqa: S105 - a reference
    elif _has_databricks_sdk():
        fields["api_key"] = "databricks-sdk:default"
    else:
        fields["api_key"] = "env:DATABRICKS_TOKEN"
    return fields


def _has_databricks_sdk() -> bool:
    try:
        return importlib.util.find_spec("databricks.sdk") is not None
    except ModuleNotFoundError:  # not even `databricks` is there
        return False


DATABRICKS = Provider(
    name="databricks",
    title="Databricks Model Serving",
    wires={**dict.fromkeys(("chat", "completions", "embeddings"), DatabricksWire), "custom": CustomWire},
    address=f"the workspace's, {_EXAMPLE}",
    environment=Environment(
        key="DATABRICKS_TOKEN",
        base_url="DATABRICKS_HOST",
        others=("DATABRICKS_CLIENT_ID", "DATABRICKS_CLIENT_SECRET"),
    ),
    errors=ErrorRules(codes={"REQUEST_LIMIT_EXCEEDED": Verdict(Throttled, "rate_limited", "endpoint")}),
    fields=frozenset({"client_id", "client_secret"}),
    fields_from_environment=_from_environment,
    check=_check,
)

"""Owns Azure OpenAI's record: two kinds of address, a key in `api-key`.

Source: Azure OpenAI's REST reference; API lifecycle page for the versionless `/openai/v1`.

On driver and workers.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from batch_infer.adapters.providers.azure_wire import AzureWire
from batch_infer.adapters.providers.record import Environment, Provider
from batch_infer.contract.endpoint import Endpoint
from batch_infer.contract.errors import ConfigError

V1 = "/openai/v1"
"""End of a base URL that leads to Azure's versionless API, which takes the model in the body as OpenAI does."""
_EXAMPLE = "such as '2024-10-21'"


def _check(endpoint: Endpoint) -> None:
    is_v1 = endpoint.base_url.endswith(V1)
    if (endpoint.api_version is None) != is_v1:
        what = (
            "it is not used with a base_url that ends in '/openai/v1'; leave it out"
            if is_v1
            else f"it is missing. Give one {_EXAMPLE}, or let base_url end in {V1!r}"
        )
        raise ConfigError(f"endpoint {endpoint.name!r}, field 'api_version': {what}.")


def _from_environment(model: str) -> Mapping[str, Any]:
    address = os.environ.get("AZURE_OPENAI_ENDPOINT")
    if not address:
        raise ConfigError(f"endpoint 'azure/{model}': set AZURE_OPENAI_ENDPOINT to the resource's address.")
    is_v1 = address.rstrip("/").endswith(V1)
    version = None if is_v1 else os.environ.get("OPENAI_API_VERSION")
    if not version and not is_v1:
        raise ConfigError(
            f"endpoint 'azure/{model}': set OPENAI_API_VERSION to a version {_EXAMPLE}, or let "
            f"AZURE_OPENAI_ENDPOINT end in {V1!r}."
        )
    return {**AZURE.plain_fields(model), "base_url": address, "api_version": version}


AZURE = Provider(
    name="azure",
    title="Azure OpenAI",
    wires=dict.fromkeys(("chat", "completions", "embeddings"), AzureWire),
    address="the resource's, such as 'https://NAME.openai.azure.com' with an 'api_version', or "
    f"'https://NAME.openai.azure.com{V1}' without",
    environment=Environment(
        key="AZURE_OPENAI_API_KEY", base_url="AZURE_OPENAI_ENDPOINT", others=("OPENAI_API_VERSION",)
    ),
    key_header="api-key",
    key_prefix="",
    fields=frozenset({"api_version"}),
    fields_from_environment=_from_environment,
    check=_check,
)

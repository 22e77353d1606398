"""Owns the choice of the wire format by an endpoint's provider and task. Does not write or read bodies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from batch_infer.adapters.providers import Wire
from batch_infer.adapters.providers.anthropic import AnthropicWire
from batch_infer.adapters.providers.anthropic_request import DEFAULT_MAX_TOKENS, parameters_of
from batch_infer.adapters.providers.azure import AzureWire
from batch_infer.adapters.providers.custom import CustomWire
from batch_infer.adapters.providers.databricks import DatabricksWire
from batch_infer.adapters.providers.openai import OpenAIWire
from batch_infer.contract.endpoint import Endpoint
from batch_infer.contract.parameters import check_thinking

_WIRES = {
    "openai": OpenAIWire,
    "local": OpenAIWire,
    "gemini": OpenAIWire,
    "azure": AzureWire,
    "databricks": DatabricksWire,
    "anthropic": AnthropicWire,
}


def open_wire(
    endpoint: Endpoint,
    *,
    base_url: str,
    parameters: Mapping[str, Any],
    response_format: Mapping[str, Any] | None,
    api_key: str | None,
) -> Wire:
    """The wire format of an endpoint's provider and task. Arguments as `OpenAIWire`'s."""
    kind: Any = CustomWire if endpoint.task == "custom" else _WIRES[endpoint.provider]
    wire: Wire = kind(
        endpoint, base_url=base_url, parameters=parameters, response_format=response_format, api_key=api_key
    )
    return wire


def check_wire(endpoint: Endpoint, parameters: Mapping[str, Any], response_format: Mapping[str, Any] | None) -> None:
    """Refuses, on the driver, what the endpoint's wire format cannot say.

    Raises:
        ConfigError: names the argument.
    """
    if endpoint.provider == "anthropic":
        parameters_of(parameters, response_format)
        if not {"max_tokens", "max_completion_tokens"} & set(parameters):
            check_thinking({**parameters, "max_tokens": DEFAULT_MAX_TOKENS})

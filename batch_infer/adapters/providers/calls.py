"""Owns what a call needs of its endpoint's provider: its wire format, opened, and its checks. On driver and workers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from batch_infer.adapters.providers import PROVIDERS
from batch_infer.adapters.providers.wire import Wire
from batch_infer.contract.endpoint import Endpoint

NOTHING: Mapping[str, str] = {}


def open_wire(
    endpoint: Endpoint,
    *,
    base_url: str,
    parameters: Mapping[str, Any],
    response_format: Mapping[str, Any] | None,
    api_key: str | None,
    headers: Mapping[str, str] = NOTHING,
    query: Mapping[str, str] = NOTHING,
) -> Wire:
    """The wire format of an endpoint's provider and task. On a worker.

    Args:
        endpoint: Whose.
        base_url: The endpoint's address, resolved (a local server's is known only at run time).
        parameters: `modelParameters`, passed through.
        response_format: The `response_format` object, or `None`.
        api_key: The secret itself, or `None`.
        headers: `Endpoint.headers`, their references resolved.
        query: `Endpoint.query`, likewise.
    """
    provider = PROVIDERS[endpoint.provider]
    wire: Wire = provider.wires[endpoint.task](
        endpoint, provider, base_url=base_url, parameters=parameters, response_format=response_format, api_key=api_key
    )
    wire.headers.update({name.lower(): value for name, value in headers.items()})
    if query:
        wire.url += ("&" if "?" in wire.url else "?") + urlencode(query)
    return wire


def check_call(endpoint: Endpoint, parameters: Mapping[str, Any], response_format: Mapping[str, Any] | None) -> None:
    """Refuses, on the driver, what the endpoint's provider cannot be sent.

    Raises:
        ConfigError: names the argument.
    """
    check = PROVIDERS[endpoint.provider].check_call
    if check is not None:
        check(parameters, response_format)


def check_ready(endpoint: Endpoint) -> None:
    """Refuses an endpoint whose provider needs a package that is not installed. On the driver.

    Raises:
        ConfigError: has the command that installs it.
    """
    check = PROVIDERS[endpoint.provider].check_ready
    if check is not None:
        check(endpoint)

"""Owns what differs by provider in an endpoint's fields: tasks, default address, fields of its own. Pure data.

Does not know wire formats: `adapters.providers` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from batch_infer.contract.errors import ConfigError

if TYPE_CHECKING:
    from batch_infer.contract.endpoint import Endpoint

TEXT_TASKS = ("chat", "completions", "embeddings")
AZURE_V1 = "/openai/v1"
"""A base URL that ends so leads to Azure's versionless API, which takes the model in the body as OpenAI does."""


@dataclass(frozen=True, slots=True)
class Provider:
    """One protocol."""

    tasks: tuple[str, ...]
    base_url: str = ""
    """Used where an endpoint names none."""
    address: str = "up to and without '/chat/completions', such as 'https://api.openai.com/v1'"
    """What to write into `base_url`."""
    fields: frozenset[str] = frozenset()
    """Fields that only this provider has."""


PROVIDERS: dict[str, Provider] = {
    "openai": Provider(TEXT_TASKS),
    "azure": Provider(
        TEXT_TASKS,
        address="the resource's, such as 'https://NAME.openai.azure.com' with an 'api_version', or "
        f"'https://NAME.openai.azure.com{AZURE_V1}' without",
        fields=frozenset({"api_version"}),
    ),
    "databricks": Provider(
        (*TEXT_TASKS, "custom"),
        address="the workspace's, such as 'https://NAME.cloud.databricks.com'",
        fields=frozenset({"client_id", "client_secret"}),
    ),
    "anthropic": Provider(
        ("chat",),
        base_url="https://api.anthropic.com",
        address="up to and without '/v1/messages'",
        fields=frozenset({"api_version"}),
    ),
    "gemini": Provider(("chat", "embeddings"), base_url="https://generativelanguage.googleapis.com/v1beta/openai"),
    "local": Provider(TEXT_TASKS),
}


def with_defaults(values: dict[str, Any]) -> dict[str, Any]:
    """An endpoint's fields, with the provider's address where they name none."""
    provider = PROVIDERS[values.get("provider", "openai")]
    if values.get("base_url") or not provider.base_url:
        return values
    return {**values, "base_url": provider.base_url}


def check_provider(endpoint: Endpoint) -> None:
    """Checks what an endpoint's provider needs and what it cannot do.

    Raises:
        ConfigError: names the endpoint and the field.
    """
    where = f"endpoint {endpoint.name!r}"
    provider = PROVIDERS[endpoint.provider]
    if endpoint.provider != "local" and not endpoint.base_url:
        raise ConfigError(f"{where}: the field 'base_url' is missing. Give the address {provider.address}.")
    if endpoint.task not in provider.tasks:
        raise ConfigError(
            f"{where}, field 'task': provider {endpoint.provider!r} has no {endpoint.task!r}; its tasks are: "
            f"{', '.join(provider.tasks)}."
        )
    for owner, other in PROVIDERS.items():
        for field in sorted(other.fields - provider.fields):
            if getattr(endpoint, field) is not None:
                raise ConfigError(
                    f"{where}, field {field!r}: provider {endpoint.provider!r} has no such thing; it is for {owner!r}."
                )
    is_v1 = endpoint.base_url.endswith(AZURE_V1)
    if endpoint.provider == "azure" and (endpoint.api_version is None) != is_v1:
        what = (
            "it is not used with a base_url that ends in '/openai/v1'; leave it out"
            if is_v1
            else f"it is missing. Give one such as '2024-10-21', or let base_url end in {AZURE_V1!r}"
        )
        raise ConfigError(f"{where}, field 'api_version': {what}.")
    if (endpoint.client_id is None) != (endpoint.client_secret is None):
        missing = "client_id" if endpoint.client_id is None else "client_secret"
        raise ConfigError(f"{where}: the field {missing!r} is missing; OAuth needs both, client_id and client_secret.")
    if endpoint.client_id is not None and endpoint.api_key is not None:
        raise ConfigError(f"{where}: both api_key and client_id are given; an endpoint has one kind of credentials.")

"""Owns Databricks' differences from OpenAI's wire format: one `/invocations` path for all tasks, no model in the body.

Source: the documented query format, POST /serving-endpoints/{name}/invocations.
"""

from __future__ import annotations

from urllib.parse import quote

from batch_infer.adapters.providers.openai import OpenAIWire
from batch_infer.contract.endpoint import Endpoint


class DatabricksWire(OpenAIWire):
    """Chat, completions or embeddings of a serving endpoint."""

    def _address(self, endpoint: Endpoint, base_url: str) -> str:
        return invocations_url(endpoint, base_url)

    def _model(self, endpoint: Endpoint) -> dict[str, str]:  # noqa: ARG002 - the path names it
        return {}


def workspace_url(base_url: str) -> str:
    """The workspace's address; OpenAI's client is given it with `/serving-endpoints`, so that is taken as well."""
    return base_url.rstrip("/").removesuffix("/serving-endpoints")


def invocations_url(endpoint: Endpoint, base_url: str) -> str:
    """Where a serving endpoint, or with a model `endpoint/model` one model of several behind it, is asked."""
    name, _, served = endpoint.model.partition("/")
    path = f"/serving-endpoints/{quote(name, safe='')}"
    if served:
        path += f"/served-models/{quote(served, safe='')}"
    return f"{workspace_url(base_url)}{path}/invocations"

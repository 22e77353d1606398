"""Owns the addresses of Databricks' serving endpoints. Pure.

Source: the documented query format, POST /serving-endpoints/{name}/invocations.

On driver and workers.
"""

from __future__ import annotations

from urllib.parse import quote

from batch_infer.contract.endpoint import Endpoint


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

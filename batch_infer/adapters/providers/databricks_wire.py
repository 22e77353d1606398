"""Owns Databricks' differences from OpenAI's wire format: one `/invocations` path for all tasks, no model in the body.

Source: the documented query format, POST /serving-endpoints/{name}/invocations.

On workers.
"""

from __future__ import annotations

from batch_infer.adapters.providers.invocations import invocations_url
from batch_infer.adapters.providers.openai_wire import OpenAIWire
from batch_infer.contract.endpoint import Endpoint


class DatabricksWire(OpenAIWire):
    """Chat, completions or embeddings of a serving endpoint."""

    def _address(self, endpoint: Endpoint, base_url: str) -> str:
        return invocations_url(endpoint, base_url)

    def _model(self, endpoint: Endpoint) -> dict[str, str]:  # noqa: ARG002 - the path names it
        return {}

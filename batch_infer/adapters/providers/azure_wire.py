"""Owns Azure's differences from OpenAI's wire format: the deployment in the path. Pure. On workers."""

from __future__ import annotations

from urllib.parse import quote

from batch_infer.adapters.providers.openai_wire import PATHS, OpenAIWire
from batch_infer.contract.endpoint import Endpoint


class AzureWire(OpenAIWire):
    """`{base}/openai/deployments/{model}/…?api-version=…`; where the base URL ends in `/openai/v1`, OpenAI's paths."""

    def _address(self, endpoint: Endpoint, base_url: str) -> str:
        if endpoint.api_version is None:
            return base_url + PATHS[endpoint.task]
        path = f"/openai/deployments/{quote(endpoint.model, safe='')}{PATHS[endpoint.task]}"
        return f"{base_url.removesuffix('/openai')}{path}?api-version={endpoint.api_version}"

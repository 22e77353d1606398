"""Owns Vertex AI's record: its OpenAI-compatible route, with tokens of google-auth or a reference of one's own.

Source: "Authenticate" and "Examples", Vertex AI's OpenAI compatibility pages.

On driver and workers.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from typing import Any

from batch_infer.adapters.providers.google_codes import GOOGLE_ERRORS
from batch_infer.adapters.providers.openai_wire import OpenAIWire
from batch_infer.adapters.providers.record import Environment, Provider
from batch_infer.contract.endpoint import Endpoint
from batch_infer.contract.errors import ConfigError

DEFAULT_LOCATION = "us-central1"
"""Region where GOOGLE_CLOUD_LOCATION names none, as in Google's examples."""
GOOGLE_TOKEN = "google:default"  # noqa: S105 - a reference


def address(project: str, location: str) -> str:
    """The `base_url` of a project's models in a region."""
    host = "aiplatform.googleapis.com" if location == "global" else f"{location}-aiplatform.googleapis.com"
    return f"https://{host}/v1/projects/{project}/locations/{location}/endpoints/openapi"


def _from_environment(model: str) -> Mapping[str, Any]:
    project = os.environ.get("GOOGLE_CLOUD_PROJECT")
    if not project:
        raise ConfigError(f"endpoint 'vertex/{model}': set GOOGLE_CLOUD_PROJECT to the project's id.")
    location = os.environ.get("GOOGLE_CLOUD_LOCATION") or DEFAULT_LOCATION
    name = model if "/" in model else f"google/{model}"
    return {"base_url": address(project, location), "model": name, "api_key": GOOGLE_TOKEN}


def _check_ready(endpoint: Endpoint) -> None:
    if endpoint.api_key == GOOGLE_TOKEN and importlib.util.find_spec("google") is None:
        raise ConfigError(
            f"endpoint {endpoint.name!r}: its key {GOOGLE_TOKEN!r} needs google-auth. "
            "Run pip install 'batch-infer[vertex]', or give api_key another reference to an access token."
        )


VERTEX = Provider(
    name="vertex",
    title="Google Vertex AI",
    wires={"chat": OpenAIWire},
    address="the project's, such as "
    "'https://us-central1-aiplatform.googleapis.com/v1/projects/PROJECT/locations/us-central1/endpoints/openapi'",
    environment=Environment(others=("GOOGLE_CLOUD_PROJECT", "GOOGLE_CLOUD_LOCATION", "GOOGLE_APPLICATION_CREDENTIALS")),
    limit_headers=(),
    errors=GOOGLE_ERRORS,
    fields_from_environment=_from_environment,
    check_ready=_check_ready,
)

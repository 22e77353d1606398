"""Owns Ollama's record. Source: its documentation, "OpenAI compatibility" and FAQ (OLLAMA_HOST, the queue's 503).

On driver and workers.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from batch_infer.adapters.providers.record import Environment, Provider

DEFAULT_HOST = "127.0.0.1:11434"


def _from_environment(model: str) -> Mapping[str, Any]:
    host = os.environ.get("OLLAMA_HOST") or DEFAULT_HOST
    given = host if "://" in host else f"http://{host}"
    address = given.replace("://0.0.0.0", "://127.0.0.1").rstrip("/")  # what a server listens on is no address to ask
    return {**OLLAMA.plain_fields(model), "base_url": address if address.endswith("/v1") else f"{address}/v1"}


OLLAMA = Provider(
    name="ollama",
    title="Ollama",
    base_url=f"http://{DEFAULT_HOST}/v1",
    environment=Environment(key="OLLAMA_API_KEY", is_key_optional=True, others=("OLLAMA_HOST",)),
    limit_headers=(),
    model_list="/models",
    fields_from_environment=_from_environment,
)

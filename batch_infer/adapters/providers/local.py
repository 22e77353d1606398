"""Owns the embedded models' record: `'local/chat'` and `'local/embed'`, served by the driver. On driver and workers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from batch_infer.adapters.local.models import LOCAL_MODELS
from batch_infer.adapters.local.server import check_installed
from batch_infer.adapters.providers.record import Provider

TASKS = {"chat": "chat", "embed": "embeddings"}
"""Task of each embedded model."""


def _from_environment(model: str) -> Mapping[str, Any] | None:
    if model not in TASKS:
        return None
    return {
        "model": LOCAL_MODELS[model].model_id,
        "task": TASKS[model],
        "max_concurrency": LOCAL_MODELS[model].slots,
        "inputs_per_request": 16,
        "usd_per_million_prompt_tokens": 0,
        "usd_per_million_completion_tokens": 0,
    }


LOCAL = Provider(
    name="local",
    title="the embedded models",
    has_address=False,
    limit_headers=(),
    is_embedded=True,
    fields_from_environment=_from_environment,
    check_ready=lambda _endpoint: check_installed(),
)

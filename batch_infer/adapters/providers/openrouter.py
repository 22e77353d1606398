"""Owns OpenRouter's record. Source: its documentation, "Errors and Debugging": codes are HTTP statuses.

On driver and workers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from batch_infer.adapters.providers.record import Environment, Provider
from batch_infer.adapters.transport.status import ErrorRules, Verdict
from batch_infer.contract.errors import RowRejected


def _judge(status: int, error: Any) -> Verdict | None:
    """A 403 whose metadata holds reasons is about the input; any other is about the key."""
    metadata = error.get("metadata") if isinstance(error, Mapping) else None
    if status == 403 and isinstance(metadata, Mapping) and metadata.get("reasons"):
        return Verdict(RowRejected, "content_filter", "row")
    return None


OPENROUTER = Provider(
    name="openrouter",
    title="OpenRouter",
    base_url="https://openrouter.ai/api/v1",
    environment=Environment(key="OPENROUTER_API_KEY", base_url="OPENROUTER_BASE_URL"),
    limit_headers=(),  # its limit and reset are of a key's credits, not of a minute
    errors=ErrorRules(judge=_judge),
)

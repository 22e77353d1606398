"""Owns OpenAI's record, which is also every OpenAI-compatible server's that has none of its own.

Source: OpenAI's API reference, "Error codes" and "Rate limits".

On driver and workers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from batch_infer.adapters.providers.record import Environment, Provider

PUBLIC = "https://api.openai.com/v1"
"""OpenAI's own address; no default of the record, which serves other servers too."""


def _from_environment(model: str) -> Mapping[str, Any]:
    fields = OPENAI.plain_fields(model)
    return {**fields, "base_url": fields["base_url"] or PUBLIC}


OPENAI = Provider(
    name="openai",
    title="OpenAI, and any server that speaks its API",
    environment=Environment(key="OPENAI_API_KEY", base_url="OPENAI_BASE_URL"),
    fields_from_environment=_from_environment,
)

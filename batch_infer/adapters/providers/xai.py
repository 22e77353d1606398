"""Owns xAI's record. Source: its documentation, "Debugging Errors": a wrong key is a 400 there.

On driver and workers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from batch_infer.adapters.providers.openai_wire import OpenAIWire
from batch_infer.adapters.providers.record import Environment, Provider
from batch_infer.adapters.transport.status import ErrorRules, Verdict
from batch_infer.contract.errors import JobRejected

WRONG_KEY = "Incorrect API key"
"""Words of the 400 that a wrong key gets; its code is that of any invalid argument."""


def _judge(status: int, error: Any) -> Verdict | None:
    said = str(error.get("error", "")) if isinstance(error, Mapping) else str(error)
    if status == 400 and said.startswith(WRONG_KEY):
        return Verdict(JobRejected, "authentication", "call", "Check the key that the endpoint's api_key refers to.")
    return None


XAI = Provider(
    name="xai",
    title="xAI",
    wires=dict.fromkeys(("chat", "completions"), OpenAIWire),
    base_url="https://api.x.ai/v1",
    environment=Environment(key="XAI_API_KEY", base_url="XAI_BASE_URL"),
    errors=ErrorRules(judge=_judge),
)

"""Owns Mistral's record. Source: its API reference; the header names are those that its replies carry.

On driver and workers.
"""

from batch_infer.adapters.providers.limit_headers import OPENAI_LIMITS, LimitHeader
from batch_infer.adapters.providers.openai_wire import OpenAIWire
from batch_infer.adapters.providers.record import Environment, Provider
from batch_infer.adapters.transport.status import ErrorRules, Verdict
from batch_infer.contract.errors import Throttled

MISTRAL = Provider(
    name="mistral",
    title="Mistral",
    wires=dict.fromkeys(("chat", "embeddings"), OpenAIWire),
    base_url="https://api.mistral.ai/v1",
    environment=Environment(key="MISTRAL_API_KEY", base_url="MISTRAL_BASE_URL"),
    limit_headers=(
        LimitHeader("tokens", "x-ratelimitbysize-limit-minute"),
        LimitHeader("requests", "x-ratelimit-limit-req-minute"),
        LimitHeader("tokens", "x-ratelimit-limit-tokens-minute"),
        *OPENAI_LIMITS,
    ),
    errors=ErrorRules(codes={"service_tier_capacity_exceeded": Verdict(Throttled, "overloaded", "endpoint")}),
)

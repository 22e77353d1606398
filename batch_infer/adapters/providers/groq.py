"""Owns Groq's record. Source: its documentation, "API Error Codes", "Rate Limits", "Flex Processing".

On driver and workers.
"""

from batch_infer.adapters.providers.limit_headers import OPENAI_LIMITS
from batch_infer.adapters.providers.openai_wire import OpenAIWire
from batch_infer.adapters.providers.record import Environment, Provider
from batch_infer.adapters.transport.status import ErrorRules, Verdict
from batch_infer.contract.errors import RowRejected, Throttled

GROQ = Provider(
    name="groq",
    title="Groq",
    wires={"chat": OpenAIWire},
    base_url="https://api.groq.com/openai/v1",
    environment=Environment(key="GROQ_API_KEY", base_url="GROQ_BASE_URL"),
    # `x-ratelimit-limit-requests` counts a day's requests here; only tokens are of a minute.
    limit_headers=tuple(header for header in OPENAI_LIMITS if header.dimension == "tokens"),
    errors=ErrorRules(
        codes={
            "capacity_exceeded": Verdict(Throttled, "overloaded", "endpoint"),
            "json_validate_failed": Verdict(RowRejected, "bad_request", "row"),
        },
        statuses={
            413: Verdict(RowRejected, "too_large", "row"),
            498: Verdict(Throttled, "overloaded", "endpoint"),
        },
    ),
)

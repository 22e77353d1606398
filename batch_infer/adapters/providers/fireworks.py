"""Owns Fireworks' record. Source: its documentation, "Inference Error Codes" and "Rate limits".

On driver and workers.
"""

from batch_infer.adapters.providers.limit_headers import LimitHeader
from batch_infer.adapters.providers.record import Environment, Provider
from batch_infer.adapters.transport.status import ErrorRules, Verdict
from batch_infer.contract.errors import JobRejected

FIREWORKS = Provider(
    name="fireworks",
    title="Fireworks",
    base_url="https://api.fireworks.ai/inference/v1",
    environment=Environment(key="FIREWORKS_API_KEY", base_url="FIREWORKS_BASE_URL"),
    limit_headers=(
        LimitHeader("requests", "x-ratelimit-limit-requests"),
        LimitHeader("input_tokens", "x-ratelimit-limit-tokens-prompt"),
        LimitHeader("output_tokens", "x-ratelimit-limit-tokens-generated"),
    ),
    errors=ErrorRules(
        statuses={412: Verdict(JobRejected, "billing", "call", "Check the account's status: it may be suspended.")}
    ),
)
